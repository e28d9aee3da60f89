"""`finetune plan`: predicts what a job needs and does, before it costs anything.

``memory``, ``gpus`` and ``build`` are pure arithmetic. ``model`` and ``rows`` read files and ask the Hub. ``view`` prints the
plan. None of these imports torch. They use the trainer's own defaults and splits (``batches``, ``precision``, ``data``), so the
plan and the training can't differ.
"""

"""`finetune plan`: what a job will need and do, before it costs anything.

``memory``, ``gpus`` and ``build`` are arithmetic; ``model`` and ``rows`` look at files and at the Hub; ``view`` shows it. None
of it imports torch. Defaults and splits are the trainer's own (``batches``, ``precision``, ``data``), so the two can't differ.
"""

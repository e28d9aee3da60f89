"""`finetune plan`: predicts what a job needs and does, before it starts.

``build``, ``forward_pass``, ``gpus``, ``memory`` and ``weights`` are pure arithmetic. ``model``, ``tensors``, ``rows`` and
``remote`` read files and the Hub. ``view`` prints the plan. None of these imports torch. They use the trainer's own defaults and
splits (``batches``, ``precision``, ``data``), so the plan and the training can't differ. The trainer uses ``micro_batch``, which
imports torch, to fit the micro-batch to its GPU.
"""

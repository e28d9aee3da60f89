"""Tasks: one module each, chosen by ``spec.task``.

A task makes model, tokenizer and rows out of the data, and says what loss, metrics and an answer are. Everything else
(batches, loop, checkpoints, progress) is the same for all of them.
"""

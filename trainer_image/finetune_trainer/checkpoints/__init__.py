"""Checkpoints: complete or not there, written while the training goes on, the same for both loops.

content.py: what one holds. tensors.py: the files' format. store.py: the directory, what is whole and what is kept. writer.py: the
thread that writes. keeper.py: all of it as the loops use it.
"""

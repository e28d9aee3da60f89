"""Checkpoints: complete or absent, written while the training continues, the same for both loops.

content.py: what a checkpoint holds. tensors.py: the format of its files. directory.py: the directory, and which checkpoints are
complete and kept. writer.py: the thread that writes. loops/checkpointer.py: the interface for the loops.
"""

"""Experiment trackers: TensorBoard, Weights & Biases, MLflow.

They run in a process of their own beside the training, which reads the history that the training writes: a tracker can neither
hold up a step nor end the job, and brings none of its threads, signal handlers and exit hooks into a worker. What it missed
while it was away it finds in the history later. A job is one run there, whatever is restarted: its id lies in the output
directory.
"""

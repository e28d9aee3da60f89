"""Experiment trackers: TensorBoard, Weights & Biases, MLflow.

They run in a separate process, which reads the history that the training writes. So a tracker can neither delay a step nor end
the job, and does not bring its threads, signal handlers and exit hooks into a worker. A tracker that was not reachable gets the
missing points from the history later. A job is one run in a tracker, across all restarts: the run's id is in the output
directory.
"""

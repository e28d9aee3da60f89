"""Measures and reports a training: progress, Prometheus metrics, evaluation results, starts, device statistics, MFU."""

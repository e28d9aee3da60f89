"""What a training process measures: metrics, progress, history, device statistics, MFU."""

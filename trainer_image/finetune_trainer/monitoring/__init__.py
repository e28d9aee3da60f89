"""What a training process measures of itself: metrics, progress, history, device statistics, MFU."""

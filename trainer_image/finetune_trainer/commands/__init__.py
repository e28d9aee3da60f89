"""Commands that work on a finished model or on data before a training, and what `finetune run` shows on a terminal."""

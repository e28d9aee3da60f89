"""Commands on finished models, and on data before a training; also the terminal output of `finetune run`."""

"""Commands on finished models, and on data before a training. Also the output of `finetune run`, and data for a cluster test."""

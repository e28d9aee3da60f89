"""The trainer. It runs in a training pod, or on one machine with `finetune run`.

``pod.launch`` starts and monitors the workers. Each worker runs ``train``. They communicate through files (``runtime.state``).
"""

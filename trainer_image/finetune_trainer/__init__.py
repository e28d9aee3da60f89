"""The trainer. A training pod runs it, and so does `finetune run` on one machine.

``pod.launch`` starts and monitors the workers. Each worker runs ``train``. They exchange files through ``runtime.state``.
"""

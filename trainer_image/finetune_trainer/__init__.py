"""The trainer: what a training pod runs, and `finetune run` on one machine.

``launch`` starts and watches the workers, ``train`` is what each worker runs, ``state`` is how the two talk.
"""

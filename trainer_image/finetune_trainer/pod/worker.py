"""The start of a training process: import everything as fast as possible, then run train.main.

The process imports thousands of modules, and keeps them until its end. The garbage collector would scan them again and again
during the imports, which takes a quarter of the whole time. It would also scan them in every full collection during the training,
and in forked processes that would copy the shared memory. So it is off during the imports, and never scans them afterwards.
"""

import gc
import sys

gc.disable()
try:
    from finetune_trainer.train import main
finally:
    gc.freeze()
    gc.enable()

if __name__ == "__main__":
    sys.exit(main())

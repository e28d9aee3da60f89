"""A training process as it is started: everything imported at once and in the shortest time, then train.main.

What is imported stays until the end, thousands of modules. The garbage collector would look through them again and again while
they come in, a quarter of the whole time, and during the training with every full collection (in forked processes it would also
copy the memory that they share). So it rests meanwhile, and never looks at them afterwards.
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

"""What ties a training process to those that started it: it ends with them, and answers when they ask what it does."""

import faulthandler
import os
import signal
import threading
import time

from finetune_trainer.runtime.state import ENV_LAUNCHER_PID, RunState


def end_with_launcher() -> None:
    """End when the launcher, or torchrun, is gone, however it ended: nobody would watch, stop or report this process any more."""
    launcher, parent = int(os.environ[ENV_LAUNCHER_PID]), os.getppid()

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os._exit(1)
            if os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def answer_for_stacks(state: RunState, rank: int) -> None:
    """On SIGUSR1 write the stacks of all threads down, also while native code runs or waits; and before a fault ends us."""
    stacks = state.stacks(rank).open("a")
    faulthandler.register(signal.SIGUSR1, stacks)
    faulthandler.enable()

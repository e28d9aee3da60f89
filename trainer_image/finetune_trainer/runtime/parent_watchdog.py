"""Ends a training process when the launcher or torchrun is gone, and writes its stacks when the launcher sends a signal."""

import faulthandler
import os
import signal
import threading
import time

from finetune_trainer.runtime.state import ENV_LAUNCHER_PID, RunState


def start_parent_watchdog() -> None:
    """End this process when the launcher or torchrun is gone, because nothing would monitor, stop or report it any more."""
    launcher, parent = int(os.environ[ENV_LAUNCHER_PID]), os.getppid()

    def poll() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os._exit(1)
            if os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=poll, name="parent-watchdog", daemon=True).start()


def dump_stacks_on_signal(state: RunState, rank: int) -> None:
    """On SIGUSR1 write the stacks of all threads to a file, even while native code runs. On a crash print them."""
    stacks = state.stacks(rank).open("a")
    faulthandler.register(signal.SIGUSR1, stacks)
    faulthandler.enable()

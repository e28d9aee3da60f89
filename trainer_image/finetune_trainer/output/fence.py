"""Who may write into an output directory: the one who took it last.

A machine that was cut off and comes back may bring a pod of an older attempt with it, which believes that it is still training.
So whoever begins leaves a token in the directory, and looks for it before each write that counts.
"""

import hashlib
import json
import pathlib
import secrets

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.state import RunState, write_atomically

_NAME = "owner.json"


class Fence:
    """Rank 0's right to write into one output directory.

    The token belongs to the pod: processes that are started again in it (the folder of ``state`` stays) go on with the same one,
    but do not take the directory back from a later attempt. attempt: for people, and for names of temporary files.
    """

    def __init__(self, output: pathlib.Path, state: RunState, attempt: int) -> None:
        self._file = output / _NAME
        self._attempt = attempt
        place = hashlib.sha256(str(output).encode()).hexdigest()[:16]
        self._ours = state.directory / f"owner-{place}"
        self.token = ""

    def take(self) -> None:
        """Become the owner; raises FineTuneError where this pod was, and another is now."""
        try:
            self.token = self._ours.read_text()
        except FileNotFoundError:
            self.token = f"{self._attempt}-{secrets.token_hex(4)}"
            write_atomically(self._file, json.dumps({"attempt": self._attempt, "token": self.token}), durable=True)
            write_atomically(self._ours, self.token)
        self.check()

    def check(self) -> None:
        """Raise FineTuneError (Interrupted) where another has taken the directory; a directory that is gone is nobody's."""
        try:
            owner = json.loads(self._file.read_text())
        except FileNotFoundError:
            owner = {}
        if owner.get("token") != self.token:
            another = f"attempt {owner['attempt']}" if "attempt" in owner else "nobody"
            raise FineTuneError(
                Reason.INTERRUPTED,
                f"the output directory {self._file.parent} belongs to {another} now, started after this one (attempt "
                f"{self._attempt}): this one ends and writes nothing more",
            )

"""Decides which process may write to an output directory: the one that acquired it last.

A node that was unreachable and comes back may still run a pod of an older attempt. So each attempt writes a token to the
directory when it starts, and checks for its token before each important write.
"""

import hashlib
import json
import pathlib
import secrets

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.state import RunState, write_atomically

_NAME = "owner.json"


class Fence:
    """Rank 0's right to write to one output directory.

    The token belongs to the pod. Processes that are restarted in the pod (the folder of ``state`` stays) use the same token. They
    do not take the directory back from a later attempt. attempt: for messages, and for names of temporary files.
    """

    def __init__(self, output: pathlib.Path, state: RunState, attempt: int) -> None:
        self._file = output / _NAME
        self._attempt = attempt
        path_hash = hashlib.sha256(str(output).encode()).hexdigest()[:16]
        self._token_file = state.directory / f"owner-{path_hash}"
        self.token = ""

    def acquire(self) -> None:
        """Become the owner. Raises FineTuneError if this pod was the owner before, and another pod is now."""
        try:
            self.token = self._token_file.read_text()
        except FileNotFoundError:
            self.token = f"{self._attempt}-{secrets.token_hex(4)}"
            write_atomically(self._file, json.dumps({"attempt": self._attempt, "token": self.token}), durable=True)
            write_atomically(self._token_file, self.token)
        self.check()

    def check(self) -> None:
        """Raise FineTuneError (Interrupted) if another pod owns the directory, or if the directory is gone."""
        try:
            owner = json.loads(self._file.read_text())
        except FileNotFoundError:
            owner = {}
        if owner.get("token") != self.token:
            current = f"attempt {owner['attempt']}, which started after this one" if "attempt" in owner else "no attempt"
            raise FineTuneError(
                Reason.INTERRUPTED,
                f"the output directory {self._file.parent} now belongs to {current}: attempt {self._attempt} ends and writes "
                "nothing more",
            )

"""The rendezvous of torchrun's agents: torch's own, with its state as signed JSON instead of a pickle that anybody can write.

torch's c10d backend unpickles what lies in a store without authentication, so whoever reaches its port can run code in the pods.
"""

import datetime
import json
import pickle
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import parse_rendezvous_endpoint  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    Token,
    _NodeDesc,
    _RendezvousState,
    create_handler,
)

from finetune_api import names
from finetune_api.reasons import FineTuneError
from finetune_trainer.runtime.signed_store import SignedStore, Signer, open_tcp_store

_STATE = "state"
_READ_TIMEOUT = datetime.timedelta(seconds=60)


def register(backend: str, key: bytes) -> None:
    """Make torchrun's option ``--rdzv-backend backend`` use this rendezvous, with the key of the attempt."""
    rendezvous_handler_registry.register(backend, lambda parameters: _create_handler(parameters, key))


def _create_handler(parameters: RendezvousParameters, key: bytes) -> DynamicRendezvousHandler:
    """Connect to the store, and serve it if the option ``is_host`` is 1. Raises RendezvousConnectionError."""
    host, port = parse_rendezvous_endpoint(parameters.endpoint, names.PORT_RENDEZVOUS)
    try:
        store = open_tcp_store(host, port, bool(parameters.get_as_bool("is_host")), _READ_TIMEOUT)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise RendezvousConnectionError(f"the store of the rendezvous at {host}:{port} can't be reached: {error}") from error
    signed = SignedStore(store, Signer(key, f"{parameters.run_id}/rendezvous"))
    return create_handler(signed, SignedBackend(signed), parameters)


class SignedBackend(RendezvousBackend):
    """Keeps the state of torch's rendezvous in a signed store. torch hands it over, and gets it back, as a pickle of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """Name for torch's log."""
        return "signed"

    def get_state(self) -> tuple[bytes, Token] | None:
        """Return the state and a token for ``set_state``; None if no agent has written one yet."""
        if not self._call(lambda: self._store.check([_STATE])):
            return None
        value: bytes = self._call(lambda: self._store.get(_STATE))
        return pickle.dumps(decode_state(value)), value

    def set_state(self, state: bytes, token: Token | None = None) -> tuple[bytes, Token, bool] | None:
        """Write the state if no other agent wrote one after ``token``. Return the present one, its token, whether it is ours."""
        expected = token if isinstance(token, bytes) else b""
        value = encode_state(pickle.loads(state))  # noqa: S301 - torch made this pickle, in this process
        found: bytes = self._call(lambda: self._store.compare_set(_STATE, expected, value))  # type: ignore[arg-type]
        return (pickle.dumps(decode_state(found)), found, found == value) if found else None

    @staticmethod
    def _call(operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except FineTuneError as error:
            raise RendezvousStateError(error.message) from error
        except (ValueError, RuntimeError, TimeoutError) as error:
            raise RendezvousConnectionError(f"the connection to the store of the rendezvous has failed: {error}") from error


def encode_state(state: _RendezvousState) -> bytes:
    """Return torch's state as JSON. Equal states give equal bytes."""
    content = {
        "round": state.round,
        "complete": state.complete,
        "closed": state.closed,
        "deadline": state.deadline.isoformat() if state.deadline else None,
        "participants": sorted([*_to_list(node), rank] for node, rank in state.participants.items()),
        "waitList": sorted(map(_to_list, state.wait_list)),
        "redundancyList": sorted(map(_to_list, state.redundancy_list)),
        "lastHeartbeats": sorted([*_to_list(node), time.isoformat()] for node, time in state.last_heartbeats.items()),
    }
    return json.dumps(content, sort_keys=True).encode()


def decode_state(value: bytes) -> _RendezvousState:
    """Return the state that ``encode_state`` wrote."""
    content = json.loads(value)
    state = _RendezvousState()
    state.round, state.complete, state.closed = content["round"], content["complete"], content["closed"]
    state.deadline = datetime.datetime.fromisoformat(content["deadline"]) if content["deadline"] else None
    state.participants = {_NodeDesc(*node): rank for *node, rank in content["participants"]}
    state.wait_list = {_NodeDesc(*node) for node in content["waitList"]}
    state.redundancy_list = {_NodeDesc(*node) for node in content["redundancyList"]}
    state.last_heartbeats = {_NodeDesc(*node): datetime.datetime.fromisoformat(time) for *node, time in content["lastHeartbeats"]}
    return state


def _to_list(node: _NodeDesc) -> list[Any]:
    return [node.addr, node.pid, node.local_id]

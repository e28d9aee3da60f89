"""The rendezvous of the agents: its state is JSON that is signed, and no pickle of a stranger is loaded."""

import base64
import datetime
import os
import pathlib
import pickle

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousStateError, dynamic_rendezvous, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState
from torch.distributed.launcher import api as launcher

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.pod import agent
from finetune_trainer.pod.processes import PodRank, command
from finetune_trainer.pod.rendezvous import SignedBackend, decode_state, encode_state
from finetune_trainer.pod.restart_policy import RestartPolicy
from finetune_trainer.runtime.signed_store import SignedStore, Signer, open_tcp_store
from finetune_trainer.runtime.state import RunState
from unit.trainer.test_launch import config

SECONDS = datetime.timedelta(seconds=20)
NODES = [_NodeDesc("10.0.0.1", 7, 0), _NodeDesc("node-1", 7, 0), _NodeDesc("node-2", 8, 1)]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self._file,)


def full_state() -> _RendezvousState:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
    state = _RendezvousState()
    state.round, state.complete, state.closed, state.deadline = 3, True, False, now
    state.participants = {NODES[0]: 0, NODES[1]: 1}
    state.wait_list, state.redundancy_list = {NODES[2]}, {NODES[1]}
    state.last_heartbeats = dict.fromkeys(NODES, now)
    return state


@pytest.mark.parametrize("state", [_RendezvousState(), full_state()], ids=["new", "full"])
def test_every_field_of_torchs_state_survives(state: _RendezvousState) -> None:
    assert vars(decode_state(encode_state(state))) == vars(state)


def test_a_state_is_replaced_only_by_an_agent_that_has_seen_it() -> None:
    store = SignedStore(open_tcp_store("127.0.0.1", 0, True, SECONDS), Signer(b"key", "job-1"))
    first, second = SignedBackend(store), SignedBackend(store)
    assert first.get_state() is None
    written = first.set_state(pickle.dumps(_RendezvousState()))
    assert written is not None
    assert written[2]
    late = second.set_state(pickle.dumps(full_state()))
    assert late is not None
    assert not late[2], "another agent was first"
    now = second.set_state(pickle.dumps(full_state()), late[1])
    assert now is not None
    assert now[2]
    found = first.get_state()
    assert found is not None
    assert vars(pickle.loads(found[0])) == vars(full_state())  # noqa: S301 - our own


@pytest.mark.parametrize("encode", [bytes, base64.b64encode], ids=["pickle", "base64"])
def test_a_pickle_of_a_stranger_is_not_loaded(tmp_path: pathlib.Path, encode: object) -> None:
    server = open_tcp_store("127.0.0.1", 0, True, SECONDS)
    backend = SignedBackend(SignedStore(server, Signer(b"key", "job-1")))
    backend.set_state(pickle.dumps(_RendezvousState()))
    stranger = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=SECONDS)
    payload = encode(pickle.dumps(Payload(tmp_path / "ran")))  # type: ignore[operator]
    for key in ("state", "torch.rendezvous.job-1"):
        stranger.set(key, payload)
        assert stranger.get(key) == payload  # set returns before the server has the value
    with pytest.raises(RendezvousStateError, match="received 'state' from something that is not part of the job") as caught:
        backend.get_state()
    assert isinstance(caught.value.__cause__, FineTuneError)
    assert caught.value.__cause__.reason == Reason.RENDEZVOUS_TAMPERED
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrap", [False, True], ids=["read by torch", "read by our backend"])
def test_a_refused_value_ends_the_attempt_with_its_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, wrap: bool
) -> None:
    def launch_agent(*_: object) -> None:
        refusal = FineTuneError(Reason.RENDEZVOUS_TAMPERED, "refused")
        if not wrap:
            raise refusal
        raise RendezvousStateError("refused") from refusal

    monkeypatch.setattr(launcher, "launch_agent", launch_agent)
    for module, name in ((launcher, "LocalElasticAgent"), (dynamic_rendezvous, "_delay")):
        monkeypatch.setattr(module, name, getattr(module, name))  # the agent replaces them
    monkeypatch.setattr(rendezvous_handler_registry, "_registry", {})
    monkeypatch.setenv("FINETUNE_LAUNCHER_PID", str(os.getppid()))
    state = RunState(tmp_path)
    state.create()
    state.write_rendezvous_key("key")
    policy = RestartPolicy(config(nodes=2), state)
    torchrun = command(config(nodes=2), PodRank(0, "host", "10.0.0.1"))[4:]
    assert agent.run_with_torchrun("finetune_trainer.pod.worker", True, torchrun, policy, state) == 1
    failure = state.read_restart_history().final_failure
    assert failure is not None
    assert (failure.reason, failure.message) == ("RendezvousTampered", "refused")

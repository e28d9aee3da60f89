"""The signed store: processes of the attempt read what they wrote, and refuse what anybody else wrote."""

import datetime
import io
import os
import pickle
import socket
import time

import numpy
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.runtime.signed_store import SignedStore, Signer, open_tcp_store, sign_object_collectives

SECONDS = datetime.timedelta(seconds=20)


class Stores:
    """A store as the processes of an attempt see it, and as a stranger does who knows everything but the key."""

    def __init__(self, scope: str = "job-1") -> None:
        server = open_tcp_store("127.0.0.1", 0, True, SECONDS)
        self.port = server.port
        self.ours = SignedStore(server, Signer(b"key", scope))
        self.theirs = dist.TCPStore("127.0.0.1", self.port, is_master=False, timeout=SECONDS)
        self.earlier = SignedStore(self.theirs, Signer(b"key", "job-0"))

    def forge(self, key: str, value: bytes) -> None:
        """Write a value as a stranger, and wait until the server has it: ``set`` returns before."""
        self.theirs.set(key, value)  # type: ignore[arg-type]
        assert self.theirs.get(key) == value


@pytest.fixture
def stores() -> Stores:
    return Stores()


def test_values_are_read_as_they_were_written(stores: Stores) -> None:
    ours = stores.ours
    ours.set("text", "a")
    ours.set("bytes", b"\0\xff")
    assert (ours.get("text"), ours.get("bytes")) == (b"a", b"\0\xff")
    ours.multi_set(["one", "two"], ["1", b"2"])
    assert ours.multi_get(["one", "two"]) == [b"1", b"2"]
    assert ours.compare_set("new", "", "a") == b"a"
    assert ours.compare_set("new", "b", "c") == b"a", "the value is not the expected one, and stays"
    assert ours.compare_set("new", "a", "c") == b"c"
    assert (ours.add("count", 2), ours.add("count", 3)) == (2, 5)
    assert ours.check(["text"])
    assert ours.delete_key("text")
    assert not ours.check(["text"])
    assert ours.clone().get("new") == b"c"
    with pytest.raises(dist.DistStoreError):
        ours.wait(["never"], datetime.timedelta(milliseconds=10))


def test_torch_itself_reads_and_writes_signed_values(stores: Stores) -> None:
    prefixed = dist.PrefixStore("group", stores.ours)
    prefixed.set("a", "b")
    assert prefixed.get("a") == stores.ours.get("group/a") == b"b"
    assert stores.theirs.get("group/a") != b"b"


@pytest.mark.parametrize("forged", [b"\0", b"short", b"x" * 100, pickle.dumps([1])])
def test_a_value_of_a_stranger_is_refused_in_one_sentence(stores: Stores, forged: bytes) -> None:
    stores.ours.set("address", "10.0.0.1")
    # Each client has a connection of its own, and the server may read them in any order.
    assert stores.ours.get("address") == b"10.0.0.1"
    stores.forge("address", forged)
    reads = (
        lambda: stores.ours.get("address"),
        lambda: stores.ours.multi_get(["address"]),
        lambda: stores.ours.clone().get("address"),
    )
    for read in reads:
        with pytest.raises(FineTuneError, match="received 'address' from something that is not part of the job") as caught:
            read()
        assert caught.value.reason == Reason.RENDEZVOUS_TAMPERED


def test_a_stranger_is_refused_when_torch_reads(stores: Stores) -> None:
    stores.forge("group/a", b"forged")
    with pytest.raises(FineTuneError, match="received 'group/a'"):
        dist.PrefixStore("group", stores.ours).get("a")


def test_a_signature_holds_for_one_name_and_one_scope(stores: Stores) -> None:
    stores.ours.set("one", "value")
    stores.forge("two", stores.theirs.get("one"))
    stores.earlier.set("three", "value")
    stores.theirs.get("three")
    for name in ("two", "three"):
        with pytest.raises(FineTuneError, match=name):
            stores.ours.get(name)


def test_a_store_at_the_loopback_address_listens_nowhere_else(stores: Stores) -> None:
    for family, address in ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")):
        with pytest.raises(OSError, match=r"refused|assign|unreachable|supported"), socket.socket(family) as stranger:
            stranger.connect((address, stores.port))


def test_it_waits_as_long_as_torch_says(stores: Stores) -> None:
    prefixed = dist.PrefixStore("group", stores.ours)
    assert prefixed.timeout == SECONDS
    prefixed.set_timeout(datetime.timedelta(milliseconds=50))
    started = time.monotonic()
    with pytest.raises(dist.DistStoreError):
        prefixed.get("never")
    assert time.monotonic() - started < 10


def test_object_collectives_carry_data_and_no_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_pickler", "_unpickler"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    signer = Signer(b"key", "job-1")
    sign_object_collectives(signer)

    def sent(value: object) -> object:
        tensor, size = distributed_c10d._object_to_tensor(value, "cpu", None)
        return distributed_c10d._tensor_to_object(tensor, size, None)

    data = {"text": "a", "numbers": (1, 2.5, None), "reason": Reason.STALLED, "size": torch.Size([2]), "set": {1}}
    assert sent(data) == data
    for tensor in (torch.ones(2, 3), torch.tensor(5), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), torch.get_rng_state()):
        found = sent({"tensor": tensor})["tensor"]  # type: ignore[index]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    for array in (numpy.arange(3), numpy.array(["a", None], dtype=object), numpy.float32(1)):
        assert (sent(array) == array).all()
    # A class of another package, by the name of a module of ours that imports it.
    imported = b"\x80\x04\x8c\x1bfinetune_trainer.pod.launch\x8c\x06Future\x93."
    with pytest.raises(FineTuneError, match=r"finetune_trainer\.pod\.launch\.Future, which is no data"):
        distributed_c10d._unpickler(io.BytesIO(signer.sign("an object of a collective", imported))).load()
    for function in (os.system, eval, torch.load):
        with pytest.raises(FineTuneError, match="which is no data"):
            sent(function)


def test_object_collectives_unpickle_only_what_was_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_pickler", "_unpickler"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    sign_object_collectives(Signer(b"key", "job-1"))
    tensor, size = distributed_c10d._object_to_tensor({"a": [1]}, "cpu", None)
    assert distributed_c10d._tensor_to_object(tensor, size, None) == {"a": [1]}
    forged = io.BytesIO(pickle.dumps({"a": [1]}))
    with pytest.raises(FineTuneError, match="an object of a collective"):
        distributed_c10d._unpickler(forged).load()

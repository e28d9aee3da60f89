"""Signatures on everything that the processes of an attempt exchange before and beside their tensors.

torch's store has no authentication: whoever reaches its port can read and write it. torch also unpickles what comes through its
object collectives, and a pickle runs code. So each value and each object carries an HMAC. One with a wrong HMAC is never used.
A stranger who reaches the ports can still disturb a training: delete or overwrite a value, or send wrong tensors.
"""

import datetime
import hashlib
import hmac
import io
import ipaddress
import pickle
import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import distributed_c10d

from finetune_api.reasons import FineTuneError, Reason

_DIGEST_BYTES = hashlib.sha256().digest_size
# torch's C++ code holds a store without its Python object, so something here must hold the object.
_alive: list["SignedStore"] = []


class Signer:
    """Signs bytes with the key of an attempt.

    scope: what the bytes belong to, for example one generation of processes. Bytes of another scope are refused.
    """

    def __init__(self, key: bytes, scope: str) -> None:
        self._mac = hmac.new(key, scope.encode() + b"\0", hashlib.sha256)

    def sign(self, name: str, value: bytes) -> bytes:
        """Return the value with a signature over its name and itself."""
        return self._digest(name, value) + value

    def verify(self, name: str, signed: bytes) -> bytes:
        """Return the value without its signature. Raises FineTuneError if no process of the attempt signed it."""
        digest, value = signed[:_DIGEST_BYTES], signed[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(name, value)):
            raise FineTuneError(
                Reason.RENDEZVOUS_TAMPERED,
                f"the processes of the job received {name!r} from something that is not part of the job, and refused it: another "
                "pod can reach their ports; ask the cluster's administrator whether NetworkPolicies are enforced",
            )
        return value

    def _digest(self, name: str, value: bytes) -> bytes:
        mac = self._mac.copy()
        encoded = name.encode()
        mac.update(len(encoded).to_bytes(8, "big") + encoded + value)
        return mac.digest()


class SignedStore(Store):
    """A torch store whose values are signed. Counters (``add``) and the existence of keys are not.

    torch's C++ code calls these methods by the names that they have here, some of them in camelCase.
    """

    def __init__(self, store: Store, signer: Signer) -> None:
        super().__init__()
        self._store: Any = store  # torch's type stubs lack some methods, and that values may be bytes
        self._signer = signer
        super().set_timeout(store.timeout)  # type: ignore[attr-defined]
        _alive.append(self)

    def set(self, key: str, value: str | bytes) -> None:
        """Sign and store a value."""
        self._store.set(key, self._sign(key, value))

    def get(self, key: str) -> bytes:
        """Wait for a value, and return it if its signature is right."""
        self.wait([key])
        return self._signer.verify(key, self._store.get(key))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Store a value if the present one is as expected ("": if there is none). Return the value that is there afterwards."""
        present = self._sign(key, expected) if expected else b""
        found = self._store.compare_set(key, present, self._sign(key, desired))
        return self._signer.verify(key, found) if found else b""

    def add(self, key: str, value: int) -> int:
        """Add to a counter, and return its new value."""
        return self._store.add(key, value)

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""
        return self._store.check(keys)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        """Wait until all keys exist. Raises torch's DistStoreError after the timeout, by default that of ``set_timeout``.

        torch's C++ code calls ``set_timeout`` of the base class only, so the other store has another default.
        """
        self._store.wait(keys, self.timeout if timeout is None else timeout)  # type: ignore[attr-defined]

    def deleteKey(self, key: str) -> bool:  # noqa: N802
        """Delete a key; return whether it existed."""
        return self._store.delete_key(key)

    def getNumKeys(self) -> int:  # noqa: N802
        """Return the number of keys."""
        return self._store.num_keys()

    def has_extended_api(self) -> bool:
        """Return False: nothing can be appended to a signed value."""
        return False

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Wait for several values, and return them if their signatures are right."""
        return [self.get(key) for key in keys]

    def multi_set(self, keys: list[str], values: Sequence[str | bytes]) -> None:
        """Sign and store several values."""
        signed = [self._sign(key, value) for key, value in zip(keys, values, strict=True)]
        self._store.multi_set(keys, signed)

    def clone(self) -> "SignedStore":
        """Return a store with a connection of its own, for another thread."""
        return SignedStore(self._store.clone(), self._signer)

    def _sign(self, key: str, value: str | bytes) -> bytes:
        return self._signer.sign(key, value.encode() if isinstance(value, str) else value)


def open_tcp_store(host: str, port: int, is_server: bool, timeout: datetime.timedelta, world_size: int | None = None) -> TCPStore:
    """Connect to a TCPStore, and serve it if ``is_server``. A server at the loopback address listens on no other address.

    port: 0 for any free port of a server.
    """
    options: dict[str, Any] = {"timeout": timeout, "wait_for_workers": False, "multi_tenant": True}
    if is_server and _is_loopback(host):
        listener = socket.create_server((host, port))
        port = listener.getsockname()[1]
        options["master_listen_fd"] = listener.detach()  # the store closes it
    return TCPStore(host, port, world_size, is_server, **options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


_OBJECT = "an object of a collective"
_OWN_PACKAGES = ("finetune_api.", "finetune_trainer.")
# What objects of other packages that processes exchange are made with.
_OTHER_DATA = {
    *(("builtins", name) for name in ("set", "frozenset", "bytearray", "complex", "slice", "range")),
    *(("collections", name) for name in ("OrderedDict", "Counter", "deque")),
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("torch", "Size"),
    (__name__, "build_tensor"),
}


def build_tensor(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor on the CPU from its bytes. dtype: for example "float32"."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(getattr(torch, dtype)).reshape(shape)


def sign_object_collectives(signer: Signer) -> None:
    """Make torch's object collectives, in this process, sign what they pickle and verify what they unpickle."""

    class SigningPickler(pickle.Pickler):
        def __init__(self, file: io.BytesIO) -> None:
            self._file, self._unsigned = file, io.BytesIO()
            super().__init__(self._unsigned)

        def reducer_override(self, value: object) -> Any:
            """Replace torch's way to pickle tensors, which would need torch.load."""
            if not isinstance(value, torch.Tensor):
                return NotImplemented
            flat = value.detach().cpu().contiguous().reshape(-1)
            return build_tensor, (
                flat.view(torch.uint8).numpy().tobytes(),
                str(value.dtype).removeprefix("torch."),
                tuple(value.shape),
            )

        def dump(self, value: object) -> None:
            super().dump(value)
            self._file.write(signer.sign(_OBJECT, self._unsigned.getvalue()))

    class VerifyingUnpickler(pickle.Unpickler):
        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(io.BytesIO(signer.verify(_OBJECT, file.read())))

        def find_class(self, module: str, name: str) -> Any:
            """Allow plain data only, in case the key is known: everyone who may read ConfigMaps of the namespace can read it."""
            if (module, name) in _OTHER_DATA:
                return super().find_class(module, name)
            if module.startswith(_OWN_PACKAGES) and "." not in name:
                found = super().find_class(module, name)
                # Not a class that the module only imported.
                if isinstance(found, type) and found.__module__ == module:
                    return found
            raise FineTuneError(
                Reason.RENDEZVOUS_TAMPERED,
                f"the processes of the job refused an object of {module}.{name}, which is no data",
            )

    # torch has no argument for these.
    distributed_c10d._pickler = SigningPickler  # type: ignore[assignment]
    distributed_c10d._unpickler = VerifyingUnpickler  # type: ignore[assignment]

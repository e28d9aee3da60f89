"""Turn an error response of the API server into a ClientError with one sentence."""

import json
import re
from typing import Any

from finetune_api import names
from finetune_client.errors import (
    ClientError,
    ForbiddenError,
    NameTakenError,
    NoSuchJobError,
    NotFoundError,
    NotInstalledError,
    RefusedError,
    UnreachableError,
)

# The API server puts the value, or its type, before the message of a validation rule. The client removes it, because the author
# of the file knows the value.
_VALUE = re.compile(r'^(Invalid value|Required value|Unsupported value|Forbidden|Duplicate value)(: "[^"]*"|: \S+)?: ')


def build_error(code: int, text: bytes | str, verb: str, plural: str, namespace: str | None, name: str = "") -> ClientError:
    """Return the error. code: the HTTP status. text: the body. verb, plural, namespace, name: those of the request."""
    status = _read_status(text)
    message = str(status.get("message", "")).strip()
    where = f" in namespace {namespace}" if namespace else " in all namespaces"
    if code == 401:
        return ForbiddenError("the API server does not accept the credentials of the kubeconfig: log in to the cluster again")
    if code == 403:
        if "cannot " in message or not message:
            return ForbiddenError(f"you may not {verb} {plural}{where}: ask an administrator of the cluster for that permission")
        return RefusedError(_one_line(message))  # a quota, Pod Security or an admission policy
    if code == 404:
        return _build_not_found(status, message, plural, namespace, name)
    if code == 409:
        if status.get("reason") == "AlreadyExists":
            name = name or (status.get("details") or {}).get("name", "of that name")
            return NameTakenError(
                f"{_kind(plural)} {name} already exists{where}: choose another name, or delete the existing one first"
            )
        return RefusedError(_one_line(message))
    if code == 429 or code >= 500:
        return UnreachableError(f"the API server can't answer at the moment ({code} {_one_line(message)})".replace(" )", ")"))
    return RefusedError(_join_causes(status) or _one_line(message) or f"the API server refuses to {verb} {plural}: {code}")


def _read_status(text: bytes | str) -> dict[str, Any]:
    """Return the Status that the API server responds with; empty for the response of a proxy."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _build_not_found(status: dict[str, Any], message: str, plural: str, namespace: str | None, name: str) -> ClientError:
    kind = (status.get("details") or {}).get("kind", "")
    if plural == names.PLURAL and (not status or (kind in ("", names.PLURAL) and not name)):
        return NotInstalledError(
            f"the cluster has no CRD for {names.KIND}s: "
            "install the operator with `helm install finetune charts/finetune-operator`"
        )
    if kind == "namespaces":
        return NotFoundError(f"there is no namespace {namespace}: create it, or choose another with --namespace")
    if plural == names.PLURAL:
        return NoSuchJobError(f"there is no {names.KIND} {name} in namespace {namespace}")
    return NotFoundError(f"there is no {_kind(plural)} {name} in namespace {namespace}" if name else _one_line(message))


def _join_causes(status: dict[str, Any]) -> str:
    """Return the messages of the failed validations, each with its field."""
    causes = (status.get("details") or {}).get("causes") or ()
    sentences = []
    for cause in causes:
        field, sentence = cause.get("field", ""), _VALUE.sub("", _one_line(cause.get("message", "")))
        sentences.append(f"{field}: {sentence}" if field and field != "<nil>" else sentence)
    return "; ".join(dict.fromkeys(sentences))


def _kind(plural: str) -> str:
    plain = {
        names.PLURAL: names.KIND,
        "pods": "pod",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods/log": "pod",
        "pods/exec": "pod",
    }
    return plain.get(plural, plural)


def _one_line(message: str) -> str:
    return " ".join(message.split())

"""From an answer of the API server that is no success to an error with one sentence."""

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

# What the API server puts before the sentence of a rule: the value, or its type, which whoever wrote the file knows.
_VALUE = re.compile(r'^(Invalid value|Required value|Unsupported value|Forbidden|Duplicate value)(: "[^"]*"|: \S+)?: ')


def build_error(code: int, text: bytes | str, verb: str, plural: str, namespace: str | None, name: str = "") -> ClientError:
    """code: of HTTP. text: the body. verb, plural, namespace and name: what was asked."""
    status = _read_status(text)
    message = str(status.get("message", "")).strip()
    where = f" in namespace {namespace}" if namespace else " in all namespaces"
    if code == 401:
        return ForbiddenError("the API server does not accept the credentials of the kubeconfig: log in to the cluster again")
    if code == 403:
        if "cannot " in message or not message:
            return ForbiddenError(f"you may not {verb} {plural}{where}: ask whoever runs the cluster for that right")
        return RefusedError(_one_line(message))  # a quota, Pod Security or a policy of the site
    if code == 404:
        return _not_there(status, message, plural, namespace, name)
    if code == 409:
        if status.get("reason") == "AlreadyExists":
            name = name or (status.get("details") or {}).get("name", "of that name")
            return NameTakenError(
                f"there is a {_kind(plural)} {name}{where} already: choose another name, or delete that one first"
            )
        return RefusedError(_one_line(message))
    if code == 429 or code >= 500:
        return UnreachableError(f"the API server can't answer at the moment ({code} {_one_line(message)})".replace(" )", ")"))
    return RefusedError(_invalid(status) or _one_line(message) or f"the API server refuses to {verb} {plural}: {code}")


def _read_status(text: bytes | str) -> dict[str, Any]:
    """The Status that the API server answers with; empty for what something in between answers."""
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _not_there(status: dict[str, Any], message: str, plural: str, namespace: str | None, name: str) -> ClientError:
    kind = (status.get("details") or {}).get("kind", "")
    if plural == names.PLURAL and (not status or (kind in ("", names.PLURAL) and not name)):
        return NotInstalledError(
            f"the cluster has no {names.KIND}s: install the operator, helm install finetune charts/finetune-operator"
        )
    if kind == "namespaces":
        return NotFoundError(f"there is no namespace {namespace}: create it, or choose another with --namespace")
    if plural == names.PLURAL:
        return NoSuchJobError(f"there is no {names.KIND} {name} in namespace {namespace}")
    return NotFoundError(f"there is no {_kind(plural)} {name} in namespace {namespace}" if name else _one_line(message))


def _invalid(status: dict[str, Any]) -> str:
    """The sentences of a validation, each with its field."""
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

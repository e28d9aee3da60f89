"""Classifies messages of the API server. Only their text says what refused a request."""

import re

_LIMIT_RANGE = re.compile(r"(maximum|minimum) \S+ usage per |\S+ max limit to request ratio per ")


def rejected_by_quota(message: str) -> bool:
    """Return whether a ResourceQuota or a LimitRange refused the object. It may be admitted when other objects are gone."""
    return "exceeded quota" in message or "failed quota" in message or bool(_LIMIT_RANGE.search(message))


def webhook_unavailable(message: str) -> bool:
    """Return whether a webhook that the API server must call did not answer. The object was neither refused nor admitted."""
    return "failed calling webhook" in message


def forbidden_by_rbac(message: str) -> bool:
    """Return whether the caller lacks a permission. Another 403 means that the cluster does not accept the object."""
    return bool(re.search(r"cannot \w+ resource", message))

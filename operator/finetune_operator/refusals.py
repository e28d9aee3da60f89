"""What a sentence of the API server means: it says by whom something was refused in words only."""

import re

_LIMIT_RANGE = re.compile(r"(maximum|minimum) \S+ usage per |\S+ max limit to request ratio per ")


def is_by_quota(sentence: str) -> bool:
    """Whether a ResourceQuota or a LimitRange refused: it may be let in later, when others have gone."""
    return "exceeded quota" in sentence or "failed quota" in sentence or bool(_LIMIT_RANGE.search(sentence))


def is_by_webhook(sentence: str) -> bool:
    """Whether a webhook did not answer that the API server has to ask: nobody refused, and nobody can allow it."""
    return "failed calling webhook" in sentence


def is_by_rbac(sentence: str) -> bool:
    """Whether whoever asked lacks a right, and not the object something that the cluster demands."""
    return bool(re.search(r"cannot \w+ resource", sentence))

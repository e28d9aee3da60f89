"""Access of the publishing tests to a Hub server: its faults, the requests that it received, and its contents.

HF_ENDPOINT and HF_TOKEN select the server, which must support /_test/faults.
"""

import json
import os
import urllib.error
import urllib.request
from typing import Any

import pytest
from huggingface_hub import HfApi

from finetune_api import resource

ENDPOINT = os.environ.get("HF_ENDPOINT", "")
COMMIT = "/api/models/[^/]+/[^/]+/commit/"


def ask(path: str, method: str = "GET", body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(ENDPOINT + path, data, method=method)  # noqa: S310 - the test's own server
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.loads(answer.read() or b"null")


def faults_can_be_injected() -> bool:
    try:
        ask("/_test/faults")
    except (urllib.error.URLError, ValueError):
        return False
    return True


# The marks of every module that uses the fixtures.
NEEDS_A_HUB = [
    pytest.mark.skipif(not ENDPOINT, reason="needs a Hub: HF_ENDPOINT and HF_TOKEN are not set"),
    pytest.mark.skipif(bool(ENDPOINT) and not faults_can_be_injected(), reason="the Hub at HF_ENDPOINT injects no faults"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # from the Hub's client, in every upload by LFS
]


class Hub:
    """A repository on the server: its faults, the requests that it received, and its contents."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.api = HfApi()

    def fail(self, path: str, **fault: Any) -> None:
        """Inject a fault. Its keys: status, headers, drop, after_bytes, delay, times."""
        ask("/_test/faults", "POST", [{"path": path} | fault])

    def requests(self, method: str, path: str) -> list[dict[str, Any]]:
        found = [entry for entry in ask("/_test/requests") if entry["method"] == method and path in entry["path"]]
        return [entry for entry in found if self.repository in entry["path"] or "/_lfs/" in entry["path"]]

    def forget_requests(self) -> None:
        ask("/_test/requests", "DELETE")

    def titles(self) -> list[str]:
        """Return the titles of the commits, newest first, without the commit that created the repository."""
        return [commit.title for commit in self.api.list_repo_commits(self.repository)][:-1]

    def files(self) -> set[str]:
        return set(self.api.list_repo_files(self.repository)) - {".gitattributes"}


SHARED = {"README.md", "config.json", "tokenizer_config.json", "model.safetensors.index.json"} | {
    f"model-0000{number}-of-00002.safetensors" for number in (1, 2)
}


def spec(hub: Hub, **fields: Any) -> Any:
    return resource.parse_spec(
        {
            "task": "text-classification",
            "model": {"claim": {"claimName": "m"}},
            "datasets": [{"claim": {"claimName": "d"}}],
            "publish": {"repository": hub.repository} | fields,
        }
    )

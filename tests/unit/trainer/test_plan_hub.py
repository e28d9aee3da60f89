"""What a plan reads from the Hub. A small server answers like the Hub, and the real client sends the requests."""

import http.server
import json
import pathlib
import struct
import threading
from collections.abc import Iterator

import huggingface_hub
import pytest

from finetune_api import resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.plan.model import observe_model
from finetune_trainer.plan.rows import observe_rows

COMMIT = "c0ffee" + "0" * 34
SPEC = {
    "task": "text-classification",
    "model": {"hub": {"name": "owner/model"}},
    "datasets": [{"hub": {"name": "owner/data"}, "maxTrainSamples": 1000}],
}
CONFIG = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
HEADER = json.dumps({"bert.encoder.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(256)
CARD = (
    "---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: 1200\n  - name: test\n    num_examples: 300\n---\n# Data\n"
)
Files = dict[str, bytes]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[Files]:
    """Path → content of the Hub's files; a repository exists if it has a file."""
    found: Files = {
        "/owner/model/config.json": json.dumps(CONFIG).encode(),
        "/owner/model/model.safetensors": WEIGHTS,
        "/datasets/owner/data/README.md": CARD.encode(),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self._content()
            error = {} if content is not None else {"X-Error-Code": self._error()}
            self.send_response(200 if content is not None else 404)
            for name, value in {"ETag": '"1"', "X-Repo-Commit": COMMIT, **error}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def _content(self) -> bytes | None:
            repository, resolve, file = self.path.partition(f"/resolve/{COMMIT}")
            if resolve:
                return found.get(repository + file)
            known = any(path.startswith(f"/{self._repository()}/") for path in found)
            return json.dumps({"id": "owner/x", "sha": COMMIT, "siblings": []}).encode() if known else None

        def _repository(self) -> str:
            return self.path.removeprefix("/api/").removeprefix("models/").partition("/revision/")[0]

        def _error(self) -> str:
            return "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound"

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{template}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    yield found
    server.shutdown()
    server.server_close()


def spec() -> FineTuneJobSpec:
    return resource.parse_spec(SPEC)


def test_a_model_is_described_by_its_configuration_and_the_headers_of_its_weights(files: Files) -> None:
    facts = observe_model(spec(), {})
    assert facts is not None
    assert facts.architecture is not None
    assert (facts.parameters, facts.linear_parameters, facts.architecture.layers) == (64, 64, 2)


def test_the_number_of_rows_comes_from_the_card_and_the_limits_of_the_job(files: Files) -> None:
    rows = observe_rows(spec(), {})
    assert (rows.train, rows.evaluation, rows.exact) == (1000, 300, False)


@pytest.mark.parametrize("card", [None, b"# no numbers\n", b"---\n: [\n---\n", b"---\ndataset_info: 5\n---\n"])
def test_a_card_without_numbers_leaves_the_rows_unknown(files: Files, card: bytes | None) -> None:
    files["/datasets/owner/data/README.md"] = card or b""
    if card is None:
        del files["/datasets/owner/data/README.md"]
        files["/datasets/owner/data/data.csv"] = b""
    rows = observe_rows(spec(), {})
    assert (rows.train, rows.reason) == (None, "the card of owner/data does not state the number of rows")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "spec.model.hub: 'owner/model' has no config.json"),
        ("model.safetensors", "spec.model.hub: 'owner/model' has no weights in the safetensors format"),
    ],
)
def test_a_repository_without_a_model_is_refused_with_a_sentence(files: Files, missing: str, sentence: str) -> None:
    del files[f"/owner/model/{missing}"]
    with pytest.raises(FineTuneError) as refusal:
        observe_model(spec(), {})
    assert (refusal.value.reason, refusal.value.message) == (Reason.CONFIGURATION_ERROR, sentence)


def test_missing_repositories_are_named(files: Files) -> None:
    files.clear()
    with pytest.raises(FineTuneError, match=r"spec\.model\.hub\.name: there is no 'owner/model'"):
        observe_model(spec(), {})
    with pytest.raises(FineTuneError, match=r"spec\.datasets\[0\]\.hub\.name: there is no 'owner/data'"):
        observe_rows(spec(), {})


def test_a_configuration_that_is_no_json_is_refused(files: Files) -> None:
    files["/owner/model/config.json"] = b"<html>"
    with pytest.raises(FineTuneError, match=r"spec\.model\.hub: config\.json of 'owner/model': "):
        observe_model(spec(), {})

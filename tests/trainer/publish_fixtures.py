"""Fixtures of the tests of publishing: a Hub server, and a small model to push to it."""

import json
import os
import pathlib
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi

from trainer.hub_server import Hub, ask


@pytest.fixture
def hub() -> Iterator[Hub]:
    ask("/_test/faults", "DELETE")
    owner = HfApi().whoami()["name"]
    made = Hub(f"{owner}/publish-{os.getpid()}-{time.monotonic_ns()}")
    made.forget_requests()
    yield made
    ask("/_test/faults", "DELETE")
    made.api.delete_repo(made.repository, missing_ok=True)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the requested sleeps, each of which takes only 10 ms."""
    waited: list[float] = []
    original = time.sleep

    def note(seconds: float) -> None:
        waited.append(seconds)
        original(0.01)

    monkeypatch.setattr(time, "sleep", note)
    return waited


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small model in two shards that no Hub has stored yet, next to files that must never be published."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.seed()  # earlier tests may have set the same seed, and the Hub does not take equal files twice
    directory = tmp_path_factory.mktemp("out") / "model"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=2000, **shape)  # type: ignore[arg-type]
    BertForSequenceClassification(config).save_pretrained(directory, max_shard_size="150KB")
    assert len(list(directory.glob("*.safetensors"))) == 2
    (directory / "README.md").write_text(
        f"---\ntags: [a]\n---\n# out\nfrom {directory} by {os.environ['HF_TOKEN']}: owner/name\n"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "/somewhere/else", "model_max_length": 8}))
    for private in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.txt", ".env", "run.py"):
        (directory / private).write_text("secret")
    (directory / "checkpoint-3").mkdir()
    (directory / "checkpoint-3" / "model.safetensors").write_text("secret")
    return directory

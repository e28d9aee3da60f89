"""Jobs write to a shared cache if possible, and otherwise only read it."""

import errno
import os
import pathlib

import huggingface_hub
import pytest

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.hub.cache import use_shared_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPEC = FineTuneJobSpec.model_validate(
    {
        "task": "text-classification",
        "model": {"hub": {"name": "team/model"}},
        "datasets": [{"hub": {"name": "team/texts"}}, {"claim": {"claimName": "data"}}],
    }
)


@pytest.fixture
def environ(tmp_path: pathlib.Path) -> dict[str, str]:
    return {names.ENV_CACHE_DIR: str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "own")}


def store_commit(cache: pathlib.Path, folder: str, **files: bytes) -> None:
    """Write a commit of a repository as the Hub's client stores it."""
    home = cache / "huggingface/hub" / folder
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (home / part).mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT)
    (home / "blobs/half.incomplete").write_bytes(b"half")
    for name, content in files.items():
        (home / "blobs" / f"etag-{name}").write_bytes(content)
        (home / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/etag-{name}")


def refuse(monkeypatch: pytest.MonkeyPatch, what: str, number: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(what, fail)


def test_downloads_go_to_the_shared_cache_if_it_is_writable(tmp_path: pathlib.Path, environ: dict[str, str]) -> None:
    use_shared_cache(environ, SPEC)
    assert environ["HF_HOME"] == str(tmp_path / "cache/huggingface")
    assert list((tmp_path / "cache/huggingface").iterdir()) == []


@pytest.mark.parametrize(
    ("what", "number"),
    [("tempfile.TemporaryFile", errno.EROFS), ("tempfile.TemporaryFile", errno.ENOSPC), ("fcntl.flock", errno.ENOLCK)],
)
def test_a_cache_that_cannot_be_written_is_still_read(
    tmp_path: pathlib.Path,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    number: int,
) -> None:
    weights = bytes(2 << 20)
    store_commit(tmp_path / "cache", "models--team--model", config=b"{}", weights=weights)
    store_commit(tmp_path / "cache", "models--team--other", config=b"{}")
    refuse(monkeypatch, what, number)
    use_shared_cache(environ, SPEC)
    assert environ["HF_HOME"] == str(tmp_path / "own")
    assert f"can't be written or locked ({os.strerror(number)})" in caplog.text
    own = tmp_path / "own/hub"
    for name, content in (("config", b"{}"), ("weights", weights)):
        for revision in (COMMIT, "main"):
            found = huggingface_hub.hf_hub_download("team/model", name, revision=revision, cache_dir=own, local_files_only=True)
            assert pathlib.Path(found).read_bytes() == content
    assert sorted(path.name for path in (own / "models--team--model/blobs").iterdir()) == ["etag-config", "etag-weights"]
    assert (own / "models--team--model/blobs/etag-weights").is_symlink()
    assert [folder.name for folder in own.iterdir() if not folder.name.startswith((".", "CACHEDIR"))] == ["models--team--model"]
    # The client updates its own reference of the branch; the one in the shared cache does not change.
    (own / "models--team--model/refs/main").write_text("f" * 40)
    assert (tmp_path / "cache/huggingface/hub/models--team--model/refs/main").read_text() == COMMIT


def test_a_cache_that_is_not_a_directory_only_costs_speed(
    tmp_path: pathlib.Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("not a directory")
    use_shared_cache(environ, SPEC)
    assert environ["HF_HOME"] == str(tmp_path / "own")
    assert "can't be written" in caplog.text


def test_without_a_cache_nothing_changes(environ: dict[str, str]) -> None:
    del environ[names.ENV_CACHE_DIR]
    before = dict(environ)
    use_shared_cache(environ, SPEC)
    assert environ == before

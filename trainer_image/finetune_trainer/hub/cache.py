"""What the Hub's libraries fetch, on a claim that jobs share: kept there where that is safe, and read from there in any case."""

import fcntl
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, MutableMapping

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec

log = logging.getLogger("finetune_trainer.hub.cache")

_LARGE_BYTES = 1 << 20


def use_shared_cache(environ: MutableMapping[str, str], spec: FineTuneJobSpec) -> None:
    """Point HF_HOME to the shared claim. Where that can't be written or locked, link what is there into the one of our own.

    Without locks of the file system the Hub's client makes lock files, and waits for ever for one whose pod was killed.
    """
    directory = environ.get(names.ENV_CACHE_DIR)
    if directory is None:
        return
    shared = pathlib.Path(directory) / "huggingface"
    try:
        shared.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=shared) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        log.warning(
            "the cache %s can't be written or locked (%s): this pod reads what is there, and fetches the rest for itself",
            directory, error.strerror,
        )  # fmt: skip
        _link(shared / "hub", pathlib.Path(environ["HF_HOME"]) / "hub", _folders(spec))
        return
    environ["HF_HOME"] = str(shared)


def _folders(spec: FineTuneJobSpec) -> list[str]:
    """The directories of the repositories that a job reads, as the Hub's client names them."""
    # Imported late: the Hub's client takes half a second, and is rarely needed here.
    from huggingface_hub.constants import REPO_ID_SEPARATOR

    found = [("models", spec.model.hub.name)] if spec.model.hub else []
    found += [("datasets", dataset.hub.name) for dataset in spec.datasets if dataset.hub]
    return [REPO_ID_SEPARATOR.join([kind, *name.split("/")]) for kind, name in found]


def _link(shared: pathlib.Path, own: pathlib.Path, folders: Iterable[str]) -> None:
    """Mirror what the Hub's client keeps of some repositories: large files as links, the rest as copies. Never an error."""
    unfinished = shutil.ignore_patterns("*.incomplete")
    for folder in folders:
        try:
            shutil.copytree(
                shared / folder, own / folder, symlinks=True, dirs_exist_ok=True, ignore=unfinished, copy_function=_link_or_copy
            )
        except FileNotFoundError:
            continue
        except OSError as error:  # shutil.Error is one: of the files that it could not read
            log.warning("not all of %s in the cache can be read: %s", folder, str(error)[:300])


def _link_or_copy(source: str, target: str) -> None:
    """The client writes the small ones anew, as the name of the newest commit: those must be ours."""
    if pathlib.Path(source).stat().st_size >= _LARGE_BYTES:
        pathlib.Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)

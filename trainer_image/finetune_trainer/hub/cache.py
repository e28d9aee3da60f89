"""Cache of the Hub's libraries on a claim that jobs share. Pods always read from it, and write to it only if they can lock it."""

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
    """Set HF_HOME to the shared claim. If the claim can't be written or locked, link its files into the pod's own cache.

    Without file system locks, the Hub's client makes lock files, and waits for ever for the lock file of a killed pod.
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
            "the cache %s can't be written or locked (%s): this pod reads what is there, and downloads the rest for itself",
            directory, error.strerror,
        )  # fmt: skip
        _link(shared / "hub", pathlib.Path(environ["HF_HOME"]) / "hub", _folders(spec))
        return
    environ["HF_HOME"] = str(shared)


def _folders(spec: FineTuneJobSpec) -> list[str]:
    """Return the directories that the Hub's client uses for the repositories of a job."""
    # Imported late: the Hub's client takes half a second to import, and is rarely needed here.
    from huggingface_hub.constants import REPO_ID_SEPARATOR

    found = [("models", spec.model.hub.name)] if spec.model.hub else []
    found += [("datasets", dataset.hub.name) for dataset in spec.datasets if dataset.hub]
    return [REPO_ID_SEPARATOR.join([kind, *name.split("/")]) for kind, name in found]


def _link(shared: pathlib.Path, own: pathlib.Path, folders: Iterable[str]) -> None:
    """Mirror the cached files of some repositories: link large files and copy the rest. Never raise an error."""
    unfinished = shutil.ignore_patterns("*.incomplete")
    for folder in folders:
        try:
            shutil.copytree(
                shared / folder, own / folder, symlinks=True, dirs_exist_ok=True, ignore=unfinished, copy_function=_link_or_copy
            )
        except FileNotFoundError:
            continue
        except OSError as error:  # includes shutil.Error, which lists unreadable files
            log.warning("some files of %s in the cache can't be read: %s", folder, str(error)[:300])


def _link_or_copy(source: str, target: str) -> None:
    """Link a large file and copy a small one. The client rewrites small files, such as the name of the newest commit."""
    if pathlib.Path(source).stat().st_size >= _LARGE_BYTES:
        pathlib.Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)

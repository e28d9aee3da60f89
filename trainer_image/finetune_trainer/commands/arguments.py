"""Parses the option --claim NAME=DIR, and finds the model in such a directory."""

import pathlib
from collections.abc import Iterable, Mapping

import click

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Claim


def parse_claims(options: Iterable[str]) -> dict[str, str]:
    """Parse NAME=DIR of each --claim into name → absolute directory. Raise FineTuneError for anything else."""
    return dict(_parse_claim(option) for option in options)


def _parse_claim(text: str) -> tuple[str, str]:
    name, separator, directory = text.partition("=")
    if not separator or not name or not directory:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--claim {text}: write NAME=DIR, for example --claim news=./data")
    path = pathlib.Path(directory).expanduser()
    if not path.is_dir():
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"--claim {name}: {directory} is not a directory")
    return name, str(path.resolve())


CLAIM = click.option(
    "--claim", "claims", multiple=True, metavar="NAME=DIR", help="Local directory to use for a claim of the job."
)


def missing_claims(names: Iterable[str], given: Mapping[str, str]) -> str | None:
    """Return the options to add for claims that are not given; None if all are given."""
    return " ".join(f"--claim {name}=DIR" for name in names if name not in given) or None


def find_model(claim: Claim, claims: Mapping[str, str], field: str = "spec.model.claim.path") -> pathlib.Path:
    """Return the directory of a model in a given claim. Raise FineTuneError if there is no model. field: what names it."""
    directory = pathlib.Path(claims[claim.claim_name]) / (claim.path or "")
    if not (directory / "config.json").is_file():
        raise FineTuneError(
            Reason.MODEL_NOT_FOUND,
            f"{field}: there is no model in {str(claim.path or '.')!r} of the claim "
            f"{claim.claim_name!r} ({directory / 'config.json'} is missing); write the directory that holds config.json",
        )
    return directory

"""Resolves names on the Hub to commits, retries requests, and turns errors into sentences that name the field to change.

huggingface_hub itself reads endpoint and token from the environment (HF_ENDPOINT, HF_TOKEN). This module never passes, formats
or stores a token.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_session, snapshot_download
from huggingface_hub import errors as hub_errors

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved

log = logging.getLogger(__name__)

TOKEN_FIELD = "spec.hub.tokenSecretRef"
HUB_ERRORS = (hub_errors.HfHubHTTPError, httpx2.HTTPError, hub_errors.OfflineModeIsEnabled)

# Field or option of a push → field with the repository's name. A push writes; all other fields name repositories to read.
_REPOSITORY_FIELDS = {"spec.publish": "spec.publish.repository", "--to": "--to"}
# Files of a repository that transformers and peft load. Weights are safetensors only, because the pickle format can run code.
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.py")

_MAX_ATTEMPTS = 5
_MAX_RETRY_DELAY_SECONDS = 300.0  # the Hub's rate limit counts requests in windows of five minutes
# A connection without an answer for this time counts as dead. By default, the client waits for ever.
_TIMEOUT = httpx2.Timeout(30, read=300, write=300)

Result = TypeVar("Result")


def retry(action: Callable[[], Result]) -> Result:
    """Call ``action``, and retry it while the Hub is busy or the connection breaks. Raise the error of the last attempt.

    The Hub's client retries some requests itself, but not the one for a commit. ``action`` must be idempotent.
    """
    for attempt in itertools.count(1):
        get_session().timeout = _TIMEOUT  # set each time, because the client makes a new session after some errors
        try:
            return action()
        except Exception as error:
            seconds = retry_delay_seconds(error, attempt)
            if seconds is None or attempt == _MAX_ATTEMPTS:
                raise
            log.warning("the Hub at %s failed (%s): retrying in %.0f s", endpoint(), _error_name(error), seconds)
        time.sleep(seconds)
    raise AssertionError("unreachable: the loop has no end")


def retry_delay_seconds(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before a retry: the Hub's Retry-After, else twice as long each time. None: do not retry.

    attempt: number of attempts so far, from 1.
    """
    usual = float(2**attempt)
    cause = hub_error(error)
    if isinstance(cause, hub_errors.HfHubHTTPError):
        status = cause.response.status_code
        if status == 412:  # another commit came first, or our own commit whose answer was lost
            return usual
        if status != 429 and status < 500:
            return None
        asked = cause.response.headers.get("Retry-After", "")
        return min(float(asked), _MAX_RETRY_DELAY_SECONDS) if asked.isdigit() else usual
    # An answer that is not JSON comes from a proxy in front of a Hub that is down.
    return usual if isinstance(cause, httpx2.TransportError) or isinstance(error, json.JSONDecodeError) else None


def _error_name(error: BaseException) -> str:
    cause = hub_error(error) or error
    return str(cause.response.status_code) if isinstance(cause, hub_errors.HfHubHTTPError) else type(cause).__name__


def hub_error(error: BaseException | None) -> BaseException | None:
    """Return the Hub's own error among the causes of an error; None if there is none."""
    while error is not None and not isinstance(error, HUB_ERRORS):
        error = error.__cause__ or error.__context__
    return error


def resolve_revisions(spec: FineTuneJobSpec, known: Resolved | None) -> Resolved:
    """Return the commits of the model and of each data set ("" for a claim). Keep the commits that an earlier attempt found.

    This also creates the repository to publish to, so that a token without that permission ends the job now and not after the
    training. Raises FineTuneError.
    """
    api = HfApi()
    model = known.model_revision if known else None
    if spec.model.hub and model is None:
        with explain_errors("spec.model.hub", spec.model.hub.name, Reason.MODEL_NOT_FOUND):
            model = api.model_info(spec.model.hub.name, revision=spec.model.hub.revision).sha
    revisions = list(known.dataset_revisions) if known and known.dataset_revisions else []
    if not revisions:
        for index, dataset in enumerate(spec.datasets):
            revision = ""
            if dataset.hub:
                with explain_errors(f"spec.datasets[{index}].hub", dataset.hub.name, Reason.DATASET_NOT_FOUND):
                    revision = api.dataset_info(dataset.hub.name, revision=dataset.hub.revision).sha or ""
            revisions.append(revision)
    if spec.publish:
        with explain_errors("spec.publish", spec.publish.repository, Reason.HUB_PUSH_FAILED):
            ensure_repository(api, spec.publish.repository, private=spec.publish.visibility == "Private")
            _check_write_access(api, spec.publish.repository)
    return Resolved(model_revision=model, dataset_revisions=revisions)


def download_model(repository: str) -> pathlib.Path:
    """Download the model of a repository into the Hub's cache, and return its directory. Raise FineTuneError."""
    with explain_errors(repository, repository, Reason.MODEL_NOT_FOUND):
        return pathlib.Path(retry(lambda: snapshot_download(repository, allow_patterns=list(_MODEL_FILES))))


def ensure_repository(api: HfApi, repository: str, private: bool) -> None:
    """Create a model repository if it does not exist. Do not change an existing one. Raise the Hub's errors."""
    if api.repo_exists(repository):
        return
    try:
        api.create_repo(repository, private=private)
    except hub_errors.HfHubHTTPError as error:
        created_meanwhile = error.response.status_code == 409 and api.repo_exists(repository)
        if not created_meanwhile:
            raise


def _check_write_access(api: HfApi, repository: str) -> None:
    """Check for write access, because creating an existing repository succeeds with any token. A mirror may not support this."""
    try:
        api.auth_check(repository, write=True)
    except hub_errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise


@contextlib.contextmanager
def explain_errors(field: str, repository: str, missing: Reason) -> Iterator[None]:
    """Turn the Hub's errors into FineTuneError. Other errors pass unchanged.

    field: spec field, or option or argument of a command, which gets its token from the environment. missing: reason to use if
    the repository does not exist or is not visible.
    """
    try:
        yield
    except FineTuneError:
        raise
    except Exception as error:
        cause = hub_error(error)
        if cause is None:
            raise
        raise _to_finetune_error(cause, field, repository, missing) from None


def explain_load_error(error: BaseException, field: str, repository: str) -> FineTuneError | None:
    """Convert an error of a library that loads a model if the Hub caused it; return None if the model itself caused it.

    A missing file also gives None, because the library's own error explains that better.
    """
    cause = hub_error(error)
    absent = isinstance(cause, hub_errors.EntryNotFoundError) and isinstance(cause, hub_errors.HfHubHTTPError)
    return None if cause is None or absent else _to_finetune_error(cause, field, repository, Reason.MODEL_NOT_FOUND)


def _to_finetune_error(error: BaseException, field: str, repository: str, missing: Reason) -> FineTuneError:
    writing = field in _REPOSITORY_FIELDS
    named = _REPOSITORY_FIELDS.get(field) or (f"{field}.name" if field.startswith("spec.") else field)
    if isinstance(error, hub_errors.GatedRepoError):
        return FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: {repository!r} is gated: accept its terms on the Hub, and give a token of that account in "
            f"{_token_field(field)}",
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return FineTuneError(
            missing, f"{field}.revision: {repository!r} has no such revision; write a branch, tag or commit that it has"
        )
    refused = isinstance(error, hub_errors.HfHubHTTPError) and error.response.status_code in (401, 403)
    if writing and refused and not os.environ.get(names.ENV_HUB_TOKEN):
        return FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: a push to {repository!r} needs a token, and there is none; give one that may write there in "
            f"{_token_field(field)}",
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        given = "with this token" if os.environ.get(names.ENV_HUB_TOKEN) else f"without a token ({_token_field(field)})"
        return _rejected_token_error(field) or FineTuneError(
            missing,
            f"{named}: there is no {repository!r} on {endpoint()}, or it can't be {'written to' if writing else 'seen'} {given}; "
            "write the name of a repository, owner/name",
        )
    if not isinstance(error, hub_errors.HfHubHTTPError):
        return FineTuneError(
            Reason.HUB_UNAVAILABLE, f"{field}: the Hub at {endpoint()} can't be reached ({type(error).__name__})"
        )
    status = error.response.status_code
    if status in (401, 403):
        return _rejected_token_error(field) or FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: the Hub refuses access to {repository!r} ({status}); the token of {_token_field(field)} needs the right "
            f"to {'write to' if writing else 'read'} it",
        )
    if status == 429 or status >= 500:
        return FineTuneError(Reason.HUB_UNAVAILABLE, f"{field}: the Hub at {endpoint()} answers {status} for {repository!r}")
    detail = f": {error.server_message}" if error.server_message else ""
    return FineTuneError(missing, f"{field}: the Hub answers {status} for {repository!r}{detail}")


def _rejected_token_error(field: str) -> FineTuneError | None:
    """Return an error if the Hub rejects the token itself. A 401 can also be about the repository; whoami tells them apart."""
    if not os.environ.get(names.ENV_HUB_TOKEN):
        return None
    try:
        HfApi().whoami()
    except hub_errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            remedy = "put a valid one into the Secret" if _token_field(field) == TOKEN_FIELD else "put a valid one there"
            return FineTuneError(
                Reason.HUB_AUTHENTICATION,
                f"{_token_field(field)}: the Hub at {endpoint()} refuses the token itself; {remedy}",
            )
    except httpx2.HTTPError:
        return None
    return None


def _token_field(field: str) -> str:
    return TOKEN_FIELD if field.startswith("spec.") else names.ENV_HUB_TOKEN


def endpoint() -> str:
    """Return the address of the Hub that is used."""
    return HfApi().endpoint

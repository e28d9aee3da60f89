"""The Hub: names to commits, patience with its troubles, and its errors to sentences that name the field to change.

Endpoint and token come from the environment (HF_ENDPOINT, HF_TOKEN), where huggingface_hub reads them itself: no token is
ever an argument, formatted, or stored here.
"""

import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_session
from huggingface_hub import errors as hub_errors

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved

log = logging.getLogger(__name__)

TOKEN_FIELD = "spec.hub.tokenSecretRef"
HUB_ERRORS = (hub_errors.HfHubHTTPError, httpx2.HTTPError, hub_errors.OfflineModeIsEnabled)

# What a push writes to; anything else that is named is read. Field → the field with the repository's name.
_REPOSITORY_FIELDS = {"spec.publish": "spec.publish.repository", "--to": "--to"}

_TRIES = 5
_LONGEST_WAIT_SECONDS = 300.0  # the Hub counts requests over windows of five minutes
# Without an answer for so long, a connection is dead; the client's own default is to wait for ever.
_TIMEOUT = httpx2.Timeout(30, read=300, write=300)

Result = TypeVar("Result")


def patiently(action: Callable[[], Result]) -> Result:
    """Do it, and again while the Hub is busy or the connection breaks; what the last try raised is raised.

    The Hub's client repeats single requests by itself, but not all of them: that for a commit it does not. So the action must
    be one that can be done twice.
    """
    for attempt in itertools.count(1):
        get_session().timeout = _TIMEOUT  # each time, as the client makes a new one after some errors
        try:
            return action()
        except Exception as error:
            seconds = seconds_to_wait(error, attempt)
            if seconds is None or attempt == _TRIES:
                raise
            log.warning("the Hub at %s is in trouble (%s): trying again in %.0f s", endpoint(), _in_short(error), seconds)
        time.sleep(seconds)
    raise AssertionError("counts without end")


def seconds_to_wait(error: BaseException, attempt: int) -> float | None:
    """Seconds until another try may succeed, as the Hub says or twice as long each time; None where none would.

    attempt: tries so far, from 1.
    """
    usual = float(2**attempt)
    cause = hub_error(error)
    if isinstance(cause, hub_errors.HfHubHTTPError):
        status = cause.response.status_code
        if status == 412:  # somebody else's commit came between, or our own, whose answer was lost
            return usual
        if status != 429 and status < 500:
            return None
        asked = cause.response.headers.get("Retry-After", "")
        return min(float(asked), _LONGEST_WAIT_SECONDS) if asked.isdigit() else usual
    # What is no JSON comes from a proxy before a Hub that is away.
    return usual if isinstance(cause, httpx2.TransportError) or isinstance(error, json.JSONDecodeError) else None


def _in_short(error: BaseException) -> str:
    cause = hub_error(error) or error
    return str(cause.response.status_code) if isinstance(cause, hub_errors.HfHubHTTPError) else type(cause).__name__


def hub_error(error: BaseException | None) -> BaseException | None:
    """The Hub's own error behind one that its client made of it; None where there is none."""
    while error is not None and not isinstance(error, HUB_ERRORS):
        error = error.__cause__ or error.__context__
    return error


def resolve(spec: FineTuneJobSpec, known: Resolved | None) -> Resolved:
    """Commits of the model and of each data set ("" for a claim's); those that an earlier attempt found are kept.

    Also creates the repository to publish to, so that a token without that right ends the job now and not after the
    training. Raises FineTuneError.
    """
    api = HfApi()
    model = known.model_revision if known else None
    if spec.model.hub and model is None:
        with explained("spec.model.hub", spec.model.hub.name, Reason.MODEL_NOT_FOUND):
            model = api.model_info(spec.model.hub.name, revision=spec.model.hub.revision).sha
    revisions = list(known.dataset_revisions) if known and known.dataset_revisions else []
    if not revisions:
        for index, dataset in enumerate(spec.datasets):
            revision = ""
            if dataset.hub:
                with explained(f"spec.datasets[{index}].hub", dataset.hub.name, Reason.DATASET_NOT_FOUND):
                    revision = api.dataset_info(dataset.hub.name, revision=dataset.hub.revision).sha or ""
            revisions.append(revision)
    if spec.publish:
        with explained("spec.publish", spec.publish.repository, Reason.HUB_PUSH_FAILED):
            ensure_repository(api, spec.publish.repository, private=spec.publish.visibility == "Private")
            _check_write_access(api, spec.publish.repository)
    return Resolved(model_revision=model, dataset_revisions=revisions)


def ensure_repository(api: HfApi, repository: str, private: bool) -> None:
    """Create a repository for models if it is not there; one that is stays as it is. Raises the Hub's errors."""
    if api.repo_exists(repository):
        return
    try:
        api.create_repo(repository, private=private)
    except hub_errors.HfHubHTTPError as error:
        created_meanwhile = error.response.status_code == 409 and api.repo_exists(repository)
        if not created_meanwhile:
            raise


def _check_write_access(api: HfApi, repository: str) -> None:
    """Creating a repository that is there already succeeds with any token: so ask. A mirror need not know the question."""
    try:
        api.auth_check(repository, write=True)
    except hub_errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise


@contextlib.contextmanager
def explained(field: str, repository: str, missing: Reason) -> Iterator[None]:
    """Turn the Hub's errors into FineTuneError; others are left as they are.

    field: of the spec, or the option of a command, whose token is the environment's. missing: the reason when the repository is
    not there (or not to be seen).
    """
    try:
        yield
    except FineTuneError:
        raise
    except Exception as error:
        cause = hub_error(error)
        if cause is None:
            raise
        raise _explanation(cause, field, repository, missing) from None


def trouble(error: BaseException, field: str, repository: str) -> FineTuneError | None:
    """What to say where the Hub is behind an error of a library that loads a model; None where the model itself is: also where
    a file of it is not there, of which the library speaks better."""
    cause = hub_error(error)
    absent = isinstance(cause, hub_errors.EntryNotFoundError) and isinstance(cause, hub_errors.HfHubHTTPError)
    return None if cause is None or absent else _explanation(cause, field, repository, Reason.MODEL_NOT_FOUND)


def _explanation(error: BaseException, field: str, repository: str, missing: Reason) -> FineTuneError:
    writing = field in _REPOSITORY_FIELDS
    named = _REPOSITORY_FIELDS.get(field, f"{field}.name")
    if isinstance(error, hub_errors.GatedRepoError):
        return FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: {repository!r} is gated: accept its terms on the Hub, and name a Secret with a token of that account in "
            f"{TOKEN_FIELD}",
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return FineTuneError(
            missing, f"{field}.revision: {repository!r} has no such revision; write a branch, tag or commit that it has"
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        given = "with this token" if os.environ.get(names.ENV_HUB_TOKEN) else f"without a token ({_token_field(field)})"
        return _refused_token(field) or FineTuneError(
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
        return _refused_token(field) or FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: the Hub refuses access to {repository!r} ({status}); the token of {_token_field(field)} needs the right "
            f"to {'write to' if writing else 'read'} it",
        )
    if status == 429 or status >= 500:
        return FineTuneError(Reason.HUB_UNAVAILABLE, f"{field}: the Hub at {endpoint()} answers {status} for {repository!r}")
    said = f": {error.server_message}" if error.server_message else ""
    return FineTuneError(missing, f"{field}: the Hub answers {status} for {repository!r}{said}")


def _refused_token(field: str) -> FineTuneError | None:
    """A 401 may be about the repository or about the token itself: ask who we are."""
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
    return names.ENV_HUB_TOKEN if field.startswith("--") else TOKEN_FIELD


def endpoint() -> str:
    """Address of the Hub that is talked to."""
    return HfApi().endpoint

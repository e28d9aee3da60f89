"""The Hub: names to commits, and its errors to sentences that name the field to change.

Endpoint and token come from the environment (HF_ENDPOINT, HF_TOKEN), where huggingface_hub reads them itself: no token is
ever an argument, formatted, or stored here.
"""

import contextlib
import os
from collections.abc import Iterator

import httpx2
from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved

TOKEN_FIELD = "spec.hub.tokenSecretRef"
HUB_ERRORS = (hub_errors.HfHubHTTPError, httpx2.HTTPError)


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
            api.create_repo(spec.publish.repository, private=spec.publish.visibility == "Private", exist_ok=True)
            _check_write_access(api, spec.publish.repository)
    return Resolved(model_revision=model, dataset_revisions=revisions)


def _check_write_access(api: HfApi, repository: str) -> None:
    """Creating a repository that is there already succeeds with any token: so ask. A mirror need not know the question."""
    try:
        api.auth_check(repository, write=True)
    except hub_errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise


@contextlib.contextmanager
def explained(field: str, repository: str, missing: Reason) -> Iterator[None]:
    """Turn the Hub's errors into FineTuneError. missing: the reason when the repository is not there (or not to be seen)."""
    try:
        yield
    except hub_errors.GatedRepoError:
        raise FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: {repository!r} is gated: accept its terms on the Hub, and name a Secret with a token of that account in "
            f"{TOKEN_FIELD}",
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise FineTuneError(
            missing, f"{field}.revision: {repository!r} has no such revision; write a branch, tag or commit that it has"
        ) from None
    except hub_errors.RepositoryNotFoundError:
        _raise_if_token_refused()
        token = "with this token" if os.environ.get(names.ENV_HUB_TOKEN) else f"without a token ({TOKEN_FIELD})"
        raise FineTuneError(
            missing,
            f"{field}.name: there is no {repository!r} on {_endpoint()}, or it can't be seen {token}; "
            "write the name of a repository, owner/name",
        ) from None
    except hub_errors.HfHubHTTPError as error:
        _raise_from_status(error, field, repository, missing)
    except httpx2.HTTPError as error:
        raise FineTuneError(
            Reason.HUB_UNAVAILABLE, f"{field}: the Hub at {_endpoint()} can't be reached ({type(error).__name__})"
        ) from None


def _raise_from_status(error: hub_errors.HfHubHTTPError, field: str, repository: str, missing: Reason) -> None:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        _raise_if_token_refused()
        raise FineTuneError(
            Reason.HUB_AUTHENTICATION,
            f"{field}: the Hub refuses access to {repository!r} ({status}); the token of {TOKEN_FIELD} needs the right to "
            + ("write to it" if field == "spec.publish" else "read it"),
        ) from None
    if status == 429 or status >= 500 or status == 0:
        raise FineTuneError(
            Reason.HUB_UNAVAILABLE, f"{field}: the Hub at {_endpoint()} answers {status or 'nothing'} for {repository!r}"
        ) from None
    raise FineTuneError(missing, f"{field}: the Hub answers {status} for {repository!r}: {error.server_message or ''}") from None


def _raise_if_token_refused() -> None:
    """A 401 may be about the repository or about the token itself: ask who we are."""
    if not os.environ.get(names.ENV_HUB_TOKEN):
        return
    try:
        HfApi().whoami()
    except hub_errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise FineTuneError(
                Reason.HUB_AUTHENTICATION,
                f"{TOKEN_FIELD}: the Hub at {_endpoint()} refuses the token itself; put a valid one into the Secret",
            ) from None
    except httpx2.HTTPError:
        return


def _endpoint() -> str:
    return HfApi().endpoint

"""Sends requests to the API server as plain JSON. The client library would build and discard models a thousand times a second."""

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import kubernetes.aio.config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api import names
from finetune_operator.observed import Manifest
from finetune_operator.refusals import forbidden_by_rbac

# A request that takes longer is cancelled and retried, because it must not block a worker.
_TIMEOUT = aiohttp.ClientTimeout(total=30)
# The API server sends a bookmark every minute, so a watch that is silent for longer has lost its connection.
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=90)
_PAGE_SIZE = 500
# An event of a watch is one line with a whole object, up to 1.5 MiB. aiohttp refuses lines of more than twice its buffer.
_LARGEST_OBJECT_BYTES = 1024**2

# Kubernetes' own PodGroups. Before 1.36 this version does not exist, and without its feature gate it is not served.
_POD_GROUPS = "scheduling.k8s.io/v1alpha2"

_PATHS = {
    "FineTuneJob": f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{}}/{names.PLURAL}",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Event": "/api/v1/namespaces/{}/events",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodGroup": f"/apis/{_POD_GROUPS}/namespaces/{{}}/podgroups",
    "CoschedulingPodGroup": "/apis/scheduling.x-k8s.io/v1alpha1/namespaces/{}/podgroups",
    "VolcanoPodGroup": "/apis/scheduling.volcano.sh/v1beta1/namespaces/{}/podgroups",
    "Workload": "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/workloads",
    "WorkloadV1beta1": "/apis/kueue.x-k8s.io/v1beta1/namespaces/{}/workloads",  # Kueue before 0.15
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "TokenReview": "/apis/authentication.k8s.io/v1/tokenreviews",
    "Discovery": "/apis",
    "Schema": f"/openapi/v3/apis/{names.GROUP}",
    "SubjectAccessReview": "/apis/authorization.k8s.io/v1/subjectaccessreviews",
}
# HTTP method → verb in RBAC.
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """The API server refused a request or did not answer.

    code: the HTTP status, 0 if there was no response. reason, message: of the Status in the response, e.g. AlreadyExists.
    retry_after_seconds: of the Retry-After header, else 0.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after_seconds: float) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    @property
    def forbidden_by_rbac(self) -> bool:
        """Return whether the operator lacks a permission. Another 403 means that the cluster does not accept the object."""
        return self.code == 403 and forbidden_by_rbac(self.message)


class Api:
    """Gets, lists, creates, updates, deletes and applies objects, with one request each, or one per page of a list.

    check_write: called before each write. It raises an exception if this process may not write. count: called with verb, kind and
    code of each response.
    """

    def __init__(
        self,
        client: ApiClient,
        check_write: Callable[[], None] = lambda: None,
        count: Callable[[str, str, int], None] = lambda verb, kind, code: None,
    ) -> None:
        self._client = client
        self._check_write = check_write
        self._count = count

    @classmethod
    async def connect(cls, count: Callable[[str, str, int], None] = lambda verb, kind, code: None) -> "Api":
        """Connect with the pod's service account, or else with the kubeconfig."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.aio.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await kubernetes.aio.config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        # With trust_env aiohttp reads ~/.netrc for each request, in a thread: half of all that a request costs.
        configuration.client_session_kwargs = {"trust_env": False, "read_bufsize": _LARGEST_OBJECT_BYTES}
        configuration.connection_pool_maxsize = 0  # no limit: each watch keeps a connection, and workers limit the rest
        return cls(ApiClient(configuration), count=count)

    def set_write_check(self, check_write: Callable[[], None]) -> None:
        """Set the function that is called before each write."""
        self._check_write = check_write

    def without_write_check(self) -> "Api":
        """Return the same connection without the check. A process must write the Lease before it leads."""
        return Api(self._client, count=self._count)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return the object, or None if it does not exist."""
        try:
            return await self._request("GET", kind, namespace, name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list_all(self, kind: str, namespace: str | None, **query: str) -> list[Manifest]:
        """Return the matching objects of one namespace, or of all (None)."""
        return [item async for page in self.list_pages(kind, namespace, **query) for item in page["items"]]

    async def list_pages(self, kind: str, namespace: str | None, **query: str) -> AsyncIterator[Manifest]:
        """Yield the pages of a list, each with `items` and `metadata`, so that a long list is never in memory at once."""
        continue_token: str | None = None
        while continue_token != "":
            paging = {"limit": str(_PAGE_SIZE), **({"continue": continue_token} if continue_token else {})}
            page = await self._request("GET", kind, namespace, query={**query, **paging})
            continue_token = page["metadata"].get("continue", "")
            yield page

    async def watch(self, kind: str, namespace: str | None, version: str, **query: str) -> AsyncIterator[Manifest]:
        """Yield the events after that resourceVersion, each with `type` and `object`, until the API server ends the watch.

        A bookmark brings only a later version. Raise ApiError with code 410 if the version is too old.
        """
        options = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        response = await self._send("watch", "GET", kind, namespace, query={**query, **options}, time_limit=_WATCH_TIMEOUT)
        if response.status != 200:
            raise _build_error(response.status, await _read(response), response.headers)
        try:
            async for line in response.response.content:
                event: Manifest = json.loads(line)
                if event["type"] == "ERROR":
                    raise _build_error(event["object"].get("code", 0), json.dumps(event["object"]).encode(), {})
                yield event
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:  # ValueError: a line that was cut off
            raise _unreachable(error) from error
        finally:
            response.response.close()

    async def create(self, kind: str, manifest: Manifest) -> Manifest:
        """Create an object. Raise ApiError with reason AlreadyExists if the name is taken."""
        return await self._request("POST", kind, manifest["metadata"]["namespace"], body=manifest)

    async def published_schema(self) -> Manifest | None:
        """Return the schema of a FineTuneJob that the API server publishes, or None if it knows no FineTuneJob."""
        try:
            document = await self._request("GET", "Schema", None, names.VERSION)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        schemas: Manifest = document["components"]["schemas"]
        return next((schema for name, schema in schemas.items() if name.endswith(f".{names.VERSION}.{names.KIND}")), None)

    async def has_pod_groups(self) -> bool:
        """Return whether the API server serves PodGroups of its own. Everybody who has a token may ask this."""
        try:
            served = await self._request("GET", "Discovery", None, _POD_GROUPS)
        except ApiError as error:
            if error.code in (403, 404):
                return False
            raise
        return any(resource["name"] == "podgroups" for resource in served["resources"])

    async def review(self, manifest: Manifest) -> Manifest:
        """Return the status that the API server gives a review: it answers at once and stores nothing."""
        review = await self._request("POST", manifest["kind"], None, body=manifest)
        status: Manifest = review["status"]
        return status

    async def update(self, kind: str, manifest: Manifest) -> Manifest:
        """Replace an object. Raise ApiError with code 409 if its resourceVersion has changed."""
        return await self._request("PUT", kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"], body=manifest)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, force: bool = False) -> None:
        """Delete the object with this uid, and its dependents in the background. Do nothing if that object is gone.

        force: delete a pod without waiting for its kubelet.
        """
        options: Manifest = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if force:
            options["gracePeriodSeconds"] = 0
        try:
            await self._request("DELETE", kind, namespace, name, body=options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def apply_status(self, kind: str, manifest: Manifest) -> Manifest:
        """Apply a status, if it differs. Raise ApiError with code 409 if uid or resourceVersion have changed."""
        metadata = manifest["metadata"]
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._request(
            "PATCH", kind, metadata["namespace"], f"{metadata['name']}/status", query, manifest, "application/apply-patch+yaml"
        )

    async def _request(
        self,
        method: str,
        kind: str,
        namespace: str | None,
        name: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        if method != "GET":
            self._check_write()
        verb = "list" if method == "GET" and not name else _VERBS[method]
        response = await self._send(verb, method, kind, namespace, name, query, body, content_type)
        text = await _read(response)
        if 200 <= response.status <= 299:
            answer: Manifest = json.loads(text)
            return answer
        raise _build_error(response.status, text, response.headers)

    async def _send(
        self,
        verb: str,
        method: str,
        kind: str,
        namespace: str | None,
        name: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
        time_limit: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> Any:
        """Return the response before its body is read."""
        path = _PATHS[kind].format(namespace) if namespace else _PATHS[kind].replace("/namespaces/{}", "")
        _, url, headers, _, _ = await self._client.param_serialize(
            method,
            f"{path}/{name}" if name else path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        try:
            # The body is JSON already, so the client need not copy it.
            response = await self._client.call_api(method, url, headers, body, _request_timeout=time_limit)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._count(verb, kind, 0)
            raise _unreachable(error) from error
        self._count(verb, kind, response.status)
        return response


async def _read(response: Any) -> bytes:
    try:
        text: bytes = await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise _unreachable(error) from error
    return text


def _unreachable(error: Exception) -> ApiError:
    """Return the error for a connection that could not be made, or that was lost."""
    return ApiError(0, "Unreachable", f"{type(error).__name__}: {error}", 0.0)


def _build_error(code: int, text: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    status: dict[str, Any] = answer if isinstance(answer, dict) else {}  # the response may come from a proxy
    retry_after = headers.get("Retry-After", "")
    return ApiError(
        code, status.get("reason", "Unknown"), status.get("message", ""), float(retry_after) if retry_after.isdecimal() else 0.0
    )

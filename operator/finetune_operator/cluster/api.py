"""Requests to the API server in its own JSON: the client's models would be built and thrown away a thousand times a second."""

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import kubernetes.aio.config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api import names
from finetune_operator.observed import Manifest
from finetune_operator.refusals import is_by_rbac

# A request that takes longer is given up and tried again: it must not hold a worker.
_TIMEOUT_SECONDS = 30
_PAGE_SIZE = 500

_PATHS = {
    "FineTuneJob": f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{{}}/{names.PLURAL}",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Event": "/api/v1/namespaces/{}/events",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Workload": "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/workloads",
    "WorkloadV1beta1": "/apis/kueue.x-k8s.io/v1beta1/namespaces/{}/workloads",  # of Kueue before 0.15
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}
# How RBAC calls the methods.
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """The API server refused.

    code: the HTTP status, 0 if it did not answer. reason: of its Status, e.g. AlreadyExists. message: its sentence.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after_seconds: float) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    @property
    def by_rbac(self) -> bool:
        """Whether the operator itself lacks a right, and not the object something that the cluster asks for."""
        return self.code == 403 and is_by_rbac(self.message)


class Api:
    """Get, list, create, update, delete and apply, each one request.

    check_write: called before each write; raises where this process may not act. count: told of each answer: verb, kind, code.
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
        """With the pod's service account, else with the kubeconfig."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.aio.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await kubernetes.aio.config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        # With trust_env aiohttp reads ~/.netrc for each request, in a thread: half of all that a request costs.
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(ApiClient(configuration), count=count)

    def guard(self, check_write: Callable[[], None]) -> None:
        """Call this before each write from now on."""
        self._check_write = check_write

    def unguarded(self) -> "Api":
        """The same connection for the Lease, which has to be written by those who may not act yet."""
        return Api(self._client, count=self._count)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None if there is none."""
        try:
            return await self._request("GET", kind, namespace, name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list_all(self, kind: str, namespace: str | None, **query: str) -> list[Manifest]:
        """The objects that match, of one namespace or of all (None)."""
        return [item async for page in self.list_pages(kind, namespace, **query) for item in page["items"]]

    async def list_pages(self, kind: str, namespace: str | None, **query: str) -> AsyncIterator[Manifest]:
        """The pages of a list, each with `items` and `metadata`, so that no long list is in memory at once."""
        following: str | None = None
        while following != "":
            more = {"limit": str(_PAGE_SIZE), **({"continue": following} if following else {})}
            page = await self._request("GET", kind, namespace, query={**query, **more})
            following = page["metadata"].get("continue", "")
            yield page

    async def create(self, kind: str, manifest: Manifest) -> Manifest:
        """Create an object; ApiError with reason AlreadyExists if the name is taken."""
        return await self._request("POST", kind, manifest["metadata"]["namespace"], body=manifest)

    async def update(self, kind: str, manifest: Manifest) -> Manifest:
        """Replace an object; ApiError with code 409 if it has another resourceVersion by now."""
        return await self._request("PUT", kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"], body=manifest)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, force: bool = False) -> None:
        """Delete that very object, its dependents in the background; nothing if it, or it with that uid, is gone.

        force: do not wait for the kubelet of a pod.
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
        """Apply a status; nothing is written if nothing changed. ApiError 409 if uid or resourceVersion are others by now."""
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
        path = _PATHS[kind].format(namespace) if namespace else _PATHS[kind].replace("/namespaces/{}", "")
        _, url, headers, content, _ = await self._client.param_serialize(
            method,
            f"{path}/{name}" if name else path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        verb = "list" if method == "GET" and not name else _VERBS[method]
        try:
            response = await self._client.call_api(method, url, headers, content, _request_timeout=_TIMEOUT_SECONDS)
            text: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._count(verb, kind, 0)
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}", 0.0) from error
        self._count(verb, kind, response.status)
        if 200 <= response.status <= 299:
            answer: Manifest = json.loads(text)
            return answer
        raise _error(response.status, text, response.headers)


def _error(code: int, text: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    status: dict[str, Any] = answer if isinstance(answer, dict) else {}  # something in between may be no API server
    after = headers.get("Retry-After", "")
    return ApiError(code, status.get("reason", "Unknown"), status.get("message", ""), float(after) if after.isdecimal() else 0.0)

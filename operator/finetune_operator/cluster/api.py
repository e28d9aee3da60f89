"""Requests to the API server in its own JSON: the client's models would be built and thrown away a thousand times a second."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import kubernetes.aio.config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api import names
from finetune_operator.observed import Manifest

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
}


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


class Api:
    """Get, list, create, delete and apply, each one request."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls) -> "Api":
        """With the pod's service account, else with the kubeconfig."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            kubernetes.aio.config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await kubernetes.aio.config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(ApiClient(configuration))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None if there is none."""
        try:
            return await self._request("GET", f"{_PATHS[kind].format(namespace)}/{name}")
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list_all(self, kind: str, namespace: str, **query: str) -> list[Manifest]:
        """The objects of a namespace that match."""
        return [item async for item in self.list_pages(kind, namespace, **query)]

    async def list_pages(self, kind: str, namespace: str | None, **query: str) -> AsyncIterator[Manifest]:
        """The objects of one namespace, or of all (None), page by page, so that no long list is in memory at once."""
        path = _PATHS[kind].format(namespace) if namespace else _PATHS[kind].replace("/namespaces/{}", "")
        following: str | None = None
        while following != "":
            page = await self._request(
                "GET", path, {**query, "limit": str(_PAGE_SIZE), **({"continue": following} if following else {})}
            )
            for item in page["items"]:
                yield item
            following = page["metadata"].get("continue", "")

    async def create(self, kind: str, manifest: Manifest) -> Manifest:
        """Create an object; ApiError with reason AlreadyExists if the name is taken."""
        return await self._request("POST", _PATHS[kind].format(manifest["metadata"]["namespace"]), body=manifest)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete that very object, its dependents in the background; nothing if it, or it with that uid, is gone."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._request("DELETE", f"{_PATHS[kind].format(namespace)}/{name}", body=options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def apply_status(self, kind: str, manifest: Manifest) -> Manifest:
        """Server-side apply of the status; with metadata.uid and resourceVersion, 409 if the object has changed."""
        metadata = manifest["metadata"]
        return await self._request(
            "PATCH",
            f"{_PATHS[kind].format(metadata['namespace'])}/{metadata['name']}/status",
            {"fieldManager": names.FIELD_MANAGER, "force": "true"},
            manifest,
            "application/apply-patch+yaml",
        )

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        _, url, headers, content, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._client.call_api(method, url, headers, content, _request_timeout=_TIMEOUT_SECONDS)
            text: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}", 0.0) from error
        if 200 <= response.status <= 299:
            answer: Manifest = json.loads(text)
            return answer
        raise _error(response.status, text, response.headers)


def _error(code: int, text: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        status: dict[str, Any] = json.loads(text)
    except ValueError:  # of something in between that is no API server
        status = {}
    after = headers.get("Retry-After", "")
    return ApiError(code, status.get("reason", "Unknown"), status.get("message", ""), float(after) if after.isdecimal() else 0.0)

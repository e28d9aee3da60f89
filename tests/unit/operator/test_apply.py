"""Creation of children: each is created once, and an existing object is used only if its owner uid matches."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import Reason
from finetune_operator.cluster.api import ApiError
from finetune_operator.cluster.apply import Blocked, Created, Refused, create_children
from finetune_operator.defaults import NetworkPolicy, OperatorDefaults
from finetune_operator.manifests import Plan, build_children
from finetune_operator.observed import Manifest
from unit.operator.builders import IMAGE, KEY, UID, build_spec
from unit.operator.fake_server import FakeServer, refusal

CLAIM = names.output_claim_name(KEY.name)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


DEFAULTS = OperatorDefaults(ca_bundle="-----BEGIN CERTIFICATE-----")
CA_BUNDLE = "finetune-ca-" + hashlib.sha256(b"-----BEGIN CERTIFICATE-----").hexdigest()[:12]


async def create(
    server: FakeServer,
    adoptions: list[bool] | None = None,
    defaults: OperatorDefaults | None = None,
    attempt: int = 1,
    scheduling_groups: bool = False,
    **spec: Any,
) -> Created | Blocked | Refused:
    """Create the children of an attempt. adoptions: receives the last argument that the builder got."""

    def build(adopted: bool) -> Sequence[Manifest]:
        if adoptions is not None:
            adoptions[:] = [adopted]
        plan = Plan(KEY.namespace, KEY.name, UID, attempt, build_spec(**spec), 2, IMAGE, 3, adopted=adopted)
        return build_children(
            dataclasses.replace(plan, defaults=defaults or OperatorDefaults(), scheduling_groups=scheduling_groups)
        )

    return await create_children(server.api(), KEY.namespace, KEY.name, UID, build, 1, started=attempt > 1)


def claim(**metadata: Any) -> Manifest:
    """Return the output claim that a FineTuneJob of this name leaves behind."""
    common = {"namespace": KEY.namespace, "name": CLAIM, "labels": {names.LABEL_JOB: KEY.name}}
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "20Gi"}}}
    return {"metadata": {**common, "annotations": {names.ANNOTATION_OWNER_UID: UID}, **metadata}, "spec": spec}


def owned_by(kind: str, uid: str) -> dict[str, Any]:
    return {"ownerReferences": [{"kind": kind, "name": KEY.name, "uid": uid, "controller": True}]}


async def test_all_children_are_created_with_the_claim_last(server: FakeServer) -> None:
    answer = await create(server)
    assert isinstance(answer, Created)
    assert (answer.job.name, answer.job.attempt, answer.job.owner is not None) == ("news-1", 1, True)
    assert server.writes() == ["POST services", "POST jobs", "POST configmaps", "POST persistentvolumeclaims"]


async def test_children_of_an_earlier_try_stay_unchanged(server: FakeServer) -> None:
    first = await create(server)
    before = dict(server.objects)
    assert await create(server) == first
    assert server.objects == before


async def test_the_run_file_is_deleted_with_the_job_of_its_attempt(server: FakeServer) -> None:
    await create(server)
    [owner] = server.take("configmaps", "news-1-11111111-1")["metadata"]["ownerReferences"]
    job = server.take("jobs", "news-1")["metadata"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", job["name"], job["uid"])
    del server.objects["jobs", KEY.namespace, "news-1"]
    answer = await create(server)
    assert isinstance(answer, Blocked)
    assert answer.message == "waiting for ConfigMap news-1-11111111-1 of an earlier Job of this name to be deleted"


async def test_all_attempts_of_a_namespace_share_one_copy_of_the_certificates(server: FakeServer) -> None:
    for attempt in (1, 2, 3):
        assert isinstance(await create(server, defaults=DEFAULTS, attempt=attempt), Created)
    assert server.names_of("configmaps") == [CA_BUNDLE, *(f"news-{attempt}-11111111-1" for attempt in (1, 2, 3))]
    shared = server.take("configmaps", CA_BUNDLE)
    assert (shared["data"], shared["immutable"]) == ({names.CA_FILE_NAME: DEFAULTS.ca_bundle}, True)
    assert "ownerReferences" not in shared["metadata"]
    for attempt in (1, 2, 3):
        assert names.CA_FILE_NAME not in server.take("configmaps", f"news-{attempt}-11111111-1")["data"]


@pytest.mark.parametrize("change", [{"data": {names.CA_FILE_NAME: "another"}}, {"immutable": False}])
async def test_certificates_of_a_stranger_are_not_trusted(server: FakeServer, change: dict[str, Any]) -> None:
    await create(server, defaults=DEFAULTS)
    server.put("configmaps", {**server.take("configmaps", CA_BUNDLE), **change})
    answer = await create(server, defaults=DEFAULTS, attempt=2)
    assert isinstance(answer, Blocked)
    assert (answer.reason, answer.needs_user_action) == ("NameTaken", True)
    assert server.names_of("jobs") == ["news-1"]


async def test_certificates_that_another_job_creates_at_the_same_time_are_used(server: FakeServer) -> None:
    server.answers["GET configmaps"] = refusal(404, "NotFound")
    assert isinstance(await create(server, defaults=DEFAULTS), Created)
    answer = await create(server, defaults=DEFAULTS, attempt=2)
    assert isinstance(answer, Blocked)
    assert answer.retry_soon
    del server.answers["GET configmaps"]
    assert isinstance(await create(server, defaults=DEFAULTS, attempt=2), Created)


async def test_a_run_file_of_an_earlier_spec_is_not_used(server: FakeServer) -> None:
    server.answers["POST jobs"] = refusal(403, "Forbidden", "admission webhook denied the request: too many nodes")
    await create(server, distributed={"nodes": 4})
    del server.answers["POST jobs"]
    for _ in range(3):
        await create(server, distributed={"nodes": 2})
    assert '"nodes": 4' not in server.take("configmaps", "news-1-11111111-1")["data"][names.RUN_FILE_NAME]


async def create_from(server: FakeServer, generation: int, started: bool = False, **spec: Any) -> Created | Blocked | Refused:
    """Create the children from a version of the spec. started: for the second attempt."""

    def build(adopted: bool) -> Sequence[Manifest]:
        parsed, attempt = build_spec(**spec), 2 if started else 1
        nodes = parsed.distributed.nodes
        return build_children(
            Plan(KEY.namespace, KEY.name, UID, attempt, parsed, nodes, IMAGE, 3, adopted=adopted, generation=generation)
        )

    return await create_children(server.api(), KEY.namespace, KEY.name, UID, build, generation, started)


@pytest.mark.parametrize("blocked", ["configmaps", "persistentvolumeclaims"])
async def test_a_job_of_an_earlier_spec_is_replaced(server: FakeServer, blocked: str) -> None:
    server.answers[f"POST {blocked}"] = refusal(403, "Forbidden", "exceeded quota: objects, requested: 1")
    assert isinstance(await create_from(server, 1, training={"learningRate": 0.1}, output={"volume": {"size": "900Ti"}}), Blocked)
    del server.answers[f"POST {blocked}"]
    corrected: dict[str, Any] = {"training": {"learningRate": 0.001}, "output": {"volume": {"size": "1Gi"}}}
    answer = await create_from(server, 2, **corrected)
    assert isinstance(answer, Blocked)
    assert (answer.reason, answer.retry_soon, answer.message) == (
        "SpecChanged",
        True,
        "replacing Job news-1, because the spec has changed",
    )
    assert isinstance(await create_from(server, 2, **corrected), Created)
    job = server.take("jobs", "news-1")
    [config] = [
        volume["configMap"]["name"] for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == "config"
    ]
    assert '"learningRate": 0.001' in server.take("configmaps", config)["data"][names.RUN_FILE_NAME]
    assert server.take("persistentvolumeclaims", CLAIM)["spec"]["resources"]["requests"]["storage"] == "1Gi"


@pytest.mark.parametrize(
    ("volume", "replaced"),
    [
        ({"size": "2Gi"}, True),
        ({"size": "1Gi", "storageClassName": "fast"}, True),
        ({"size": "1024Mi"}, False),
    ],
)
async def test_a_claim_of_an_earlier_spec_is_replaced_if_it_differs(
    server: FakeServer, volume: dict[str, Any], replaced: bool
) -> None:
    assert isinstance(await create_from(server, 1, output={"volume": {"size": "1Gi"}}), Created)
    del server.objects["jobs", KEY.namespace, "news-1"]
    answer = await create_from(server, 2, output={"volume": volume})
    assert isinstance(answer, Blocked if replaced else Created)
    if replaced:
        assert "DELETE persistentvolumeclaims news-output" in server.requests
        assert isinstance(await create_from(server, 2, output={"volume": volume}), Created)


@pytest.mark.parametrize("annotation", [{}, {names.ANNOTATION_GENERATION: "2"}])
async def test_a_claim_that_something_else_changed_is_kept(server: FakeServer, annotation: dict[str, str]) -> None:
    """An operator that restarts before the first status finds the claim as a webhook changed it."""
    server.put("persistentvolumeclaims", claim(annotations={names.ANNOTATION_OWNER_UID: UID, **annotation}))
    assert isinstance(await create_from(server, 2, output={"volume": {"size": "1Gi"}}), Created)
    assert server.take("persistentvolumeclaims", CLAIM)["spec"]["resources"]["requests"]["storage"] == "20Gi"


async def test_the_claims_of_an_earlier_job_and_of_a_started_one_are_never_replaced(server: FakeServer) -> None:
    server.put("persistentvolumeclaims", claim(annotations={names.ANNOTATION_OWNER_UID: "another"}))
    assert isinstance(await create_from(server, 1, output={"volume": {"size": "1Gi"}}), Created)
    server.put("persistentvolumeclaims", claim(annotations={names.ANNOTATION_OWNER_UID: UID, names.ANNOTATION_GENERATION: "1"}))
    assert isinstance(await create_from(server, 2, started=True, output={"volume": {"size": "2Gi"}}), Created)
    assert not [request for request in server.requests if request.startswith("DELETE")]


async def test_a_later_attempt_that_was_made_from_an_earlier_spec_is_replaced(server: FakeServer) -> None:
    two, four = ({"distributed": {"nodes": nodes}, "output": {"claim": {"claimName": "mine"}}} for nodes in (2, 4))
    assert isinstance(await create_from(server, 3, started=True, **two), Created)
    answer = await create_from(server, 4, started=True, **four)
    assert isinstance(answer, Blocked)
    assert answer.message == "replacing Job news-2, because the spec has changed"
    created = await create_from(server, 4, started=True, **four)
    assert isinstance(created, Created)
    assert created.job.completions == 4


@pytest.mark.parametrize(
    ("mode", "nodes", "blocked"), [("ReadWriteOnce", 2, True), ("ReadWriteOnce", 1, False), ("ReadWriteMany", 2, False)]
)
async def test_a_volume_of_one_node_keeps_a_job_from_growing(server: FakeServer, mode: str, nodes: int, blocked: bool) -> None:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "10Gi"}}}
    server.put("persistentvolumeclaims", {**claim(), "spec": spec})
    answer = await create_from(server, 2, started=True, distributed={"nodes": nodes})
    assert isinstance(answer, Blocked if blocked else Created)
    if isinstance(answer, Blocked):
        assert (answer.reason, answer.needs_user_action, server.writes()) == ("OutputNotShared", True, [])
        assert "set spec.distributed.nodes to 1" in answer.message


async def test_a_job_of_an_earlier_operator_which_wrote_no_generation_is_kept(server: FakeServer) -> None:
    assert isinstance(await create_from(server, 1), Created)
    del server.objects["jobs", KEY.namespace, "news-1"]["metadata"]["annotations"]
    assert isinstance(await create_from(server, 2), Created)


async def test_a_claim_that_the_user_provides_is_not_read(server: FakeServer) -> None:
    await create(server, output={"claim": {"claimName": "mine"}})
    assert not any("persistentvolumeclaims" in request for request in server.requests)


async def test_a_claim_that_an_earlier_job_of_the_same_name_left_is_adopted(server: FakeServer) -> None:
    server.put("persistentvolumeclaims", claim(annotations={names.ANNOTATION_OWNER_UID: "another"}))
    adoptions = [False]
    assert isinstance(await create(server, adoptions), Created)
    assert adoptions == [True]
    assert "POST persistentvolumeclaims" not in server.writes()
    assert '"adopted": true' in server.take("configmaps", "news-1-11111111-1")["data"][names.RUN_FILE_NAME]


async def test_a_claim_that_this_job_created_is_not_adopted(server: FakeServer) -> None:
    server.put("persistentvolumeclaims", claim())
    adoptions = [True]
    assert isinstance(await create(server, adoptions), Created)
    assert adoptions == [False]


@pytest.mark.parametrize(
    ("metadata", "answer"),
    [
        pytest.param({"annotations": {}}, Refused, id="foreign claim with that name"),
        pytest.param(
            {"annotations": {names.ANNOTATION_OWNER_UID: "another"}, "labels": {}}, Refused, id="without the label of the job"
        ),
        pytest.param(owned_by("StatefulSet", "another"), Refused, id="owned by another kind of object"),
        pytest.param(owned_by(names.KIND, "another"), Blocked, id="owned by an earlier job"),
        pytest.param({"deletionTimestamp": "2026-01-02T03:04:05Z"}, Blocked, id="is being deleted"),
    ],
)
async def test_a_foreign_claim_is_found_before_anything_starts(
    server: FakeServer, metadata: dict[str, Any], answer: type[object]
) -> None:
    server.put("persistentvolumeclaims", claim(**metadata))
    found = await create(server)
    assert isinstance(found, answer)
    assert server.writes() == []
    if isinstance(found, Refused):
        assert found.reason is Reason.OUTPUT_CONFLICT
        assert f"output: {{claim: {{claimName: {CLAIM}}}}}" in found.message
    elif isinstance(found, Blocked):
        assert (found.reason, found.needs_user_action) == ("WaitingForDeletion", False)


@pytest.mark.parametrize(
    ("metadata", "reason", "needs_user_action"),
    [
        ({}, "NameTaken", True),
        (owned_by("Deployment", "another"), "NameTaken", True),
        (owned_by(names.KIND, "another"), "WaitingForDeletion", False),
        ({**owned_by(names.KIND, UID), "deletionTimestamp": "2026-01-02T03:04:05Z"}, "WaitingForDeletion", False),
    ],
)
async def test_a_foreign_service_blocks_the_job(
    server: FakeServer, metadata: dict[str, Any], reason: str, needs_user_action: bool
) -> None:
    server.put("services", {"metadata": {"namespace": KEY.namespace, "name": names.service_name(KEY.name), **metadata}})
    answer = await create(server)
    assert isinstance(answer, Blocked)
    assert (answer.reason, answer.needs_user_action) == (reason, needs_user_action)
    assert server.names_of("jobs") == []


WEBHOOK = 'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: Post "https://a.svc": refused'
RBAC = 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"'


@pytest.mark.parametrize(
    ("code", "message", "answer", "reason"),
    [
        (403, "exceeded quota: objects, requested: count/jobs.batch=1", Blocked, "QuotaExceeded"),
        (403, "failed quota: cpu: must specify limits.cpu", Blocked, "QuotaExceeded"),
        (403, "minimum cpu usage per Container is 2, but request is 500m", Blocked, "QuotaExceeded"),
        (403, "memory max limit to request ratio per Pod is 2", Blocked, "QuotaExceeded"),
        (403, "namespace team is being terminated", Blocked, "NamespaceTerminating"),
        (403, 'violates PodSecurity "restricted:latest"', Blocked, "Forbidden"),
        (403, RBAC, Blocked, "Forbidden"),
        (500, WEBHOOK, Blocked, "WebhookFailed"),
        (422, "spec.template.spec.priorityClassName: not found", Refused, "PodRejected"),
        (400, "json: cannot unmarshal", Refused, "PodRejected"),
    ],
)
async def test_a_refusal_is_classified_by_its_code_and_message(
    server: FakeServer, code: int, message: str, answer: type[Blocked | Refused], reason: str
) -> None:
    server.answers["POST jobs"] = refusal(code, "Forbidden", message)
    found = await create(server)
    assert isinstance(found, answer)
    assert (found.reason, found.message) == (reason, f"Job news-1: {message}")
    if isinstance(found, Blocked):
        assert found.needs_user_action == (reason == "Forbidden")


@pytest.mark.parametrize("code", [0, 429, 500, 503])
async def test_an_error_that_only_a_retry_can_fix_is_raised(server: FakeServer, code: int) -> None:
    server.answers["POST jobs"] = OSError("no route") if code == 0 else refusal(code, "Whatever")
    with pytest.raises(ApiError):
        await create(server)
    del server.answers["POST jobs"]
    assert isinstance(await create(server), Created)
    assert server.names_of("jobs") == ["news-1"]


GANG: dict[str, Any] = {"pod": {"schedulerName": "volcano"}}


async def test_each_attempt_has_a_pod_group_of_its_size_before_its_pods(server: FakeServer) -> None:
    assert isinstance(await create(server, **GANG), Created)
    first = server.take("podgroups", "news-gang")
    assert (first["spec"], server.writes()[:3]) == ({"minMember": 2}, ["POST services", "POST podgroups", "POST jobs"])
    first["spec"]["queue"] = "default"  # Volcano's webhook
    assert isinstance(await create(server, **GANG), Created)
    assert server.take("podgroups", "news-gang")["metadata"]["uid"] == first["metadata"]["uid"]
    assert isinstance(await create(server, attempt=2, **GANG), Created)
    assert server.take("podgroups", "news-gang")["metadata"]["labels"][names.LABEL_ATTEMPT] == "2"


async def test_a_job_starts_without_a_pod_group_if_the_cluster_has_none(server: FakeServer) -> None:
    server.answers["POST podgroups"] = refusal(404, "NotFound", "the server could not find the requested resource")
    assert isinstance(await create(server, **GANG), Created)
    assert server.names_of("jobs") == ["news-1"]


@pytest.mark.parametrize(
    ("metadata", "code", "reason"),
    [({}, 201, "NameTaken"), (None, 403, "Forbidden"), (None, 409, "WaitingForDeletion")],
)
async def test_no_pod_starts_without_the_pod_group_that_its_scheduler_waits_for(
    server: FakeServer, metadata: dict[str, Any] | None, code: int, reason: str
) -> None:
    if metadata is not None:
        server.put("podgroups", {"metadata": {"namespace": KEY.namespace, "name": "news-gang"}, "spec": {"minMember": 2}})
    if code != 201:
        server.answers["POST podgroups"] = refusal(code, "AlreadyExists" if code == 409 else "Forbidden", "no")
    answer = await create(server, **GANG)
    assert isinstance(answer, Blocked)
    assert (answer.reason, server.names_of("jobs")) == (reason, [])


async def test_a_pod_group_of_kubernetes_belongs_to_the_job_of_its_attempt(server: FakeServer) -> None:
    assert isinstance(await create(server, scheduling_groups=True), Created)
    assert server.writes()[1:4] == ["POST jobs", "POST podgroups", "POST configmaps"]
    [group] = server.names_of("podgroups")
    [owner] = server.take("podgroups", group)["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("news-1", server.take("jobs", "news-1")["metadata"]["uid"])
    server.forget_requests()
    assert isinstance(await create(server, scheduling_groups=True), Created)  # another try changes nothing
    assert (server.names_of("podgroups"), server.writes().count("DELETE podgroups")) == ([group], 0)


WITH_POLICY = OperatorDefaults(network_policy=NetworkPolicy(enabled=True))


async def test_what_the_job_needs_is_created_at_once_and_the_job_only_after_all_of_it(server: FakeServer) -> None:
    server.answers["POST services"] = refusal(403, "Forbidden", "exceeded quota: services")
    result = await create(server, defaults=WITH_POLICY)
    assert isinstance(result, Blocked)
    assert (result.reason, server.writes()) == ("QuotaExceeded", ["POST services", "POST networkpolicies"])
    server.forget_requests()
    server.answers["POST services"] = refusal(503, "Unavailable")
    with pytest.raises(ApiError):
        await create(server, defaults=WITH_POLICY)
    assert "POST jobs" not in server.requests


async def test_the_manifests_are_built_once(server: FakeServer) -> None:
    built: list[bool] = []

    def build(adopted: bool) -> Sequence[Manifest]:
        built.append(adopted)
        return build_children(Plan(KEY.namespace, KEY.name, UID, 1, build_spec(), 2, IMAGE, 3, adopted=adopted))

    assert isinstance(await create_children(server.api(), KEY.namespace, KEY.name, UID, build, 1, started=False), Created)
    assert built == [False]

"""Specs that the models and the API server must accept, and specs that both must reject.

A rejected case has the field that the error must name. If a CEL rule rejects it, and not the schema, the case also has the
message of the rule.
"""

from finetune_api.spec.containers import RESERVED_VARIABLES_MESSAGE
from finetune_api.spec.output import CREDENTIALS_MESSAGE
from finetune_api.spec.pod import RESERVED_KEYS_MESSAGE
from finetune_api.spec.tasks import UNKNOWN_TASK
from unit.api import pod_cases, stream_cases, task_cases
from unit.api.cases import FULL, LEFT_OUT, MINIMAL, Case, changed

ACCEPTED = [
    Case("minimal", MINIMAL),
    Case("full", FULL),
    Case("integer for a number", changed("training.epochs", 2)),
    *(
        Case(f"image {image}", changed("pod.image", image))
        for image in ("a", "a:1", "Host.example.com:5000/t_x/a__b.c-d:V1.0", "[fd00::1]:5000/x", f"g.io/a/b:1@sha256:{64 * 'a'}")
    ),
    Case("paths with dots inside names", changed("datasets.0", {"claim": {"claimName": "c", "path": ".cache/v1.0/train..csv"}})),
    Case("hub model without an owner", changed("model.hub.name", "gpt2")),
    Case("one pod with any access mode", changed("output.volume", {"accessMode": "ReadWriteOncePod"})),
    Case(
        "several pods and the default access mode",
        {**MINIMAL, "distributed": {"nodes": 3}, "output": {"volume": {"size": "1Gi"}}},
    ),
    Case("micro-batch as large as the batch", changed("training", {"globalBatchSize": 8, "perDeviceBatchSize": 8})),
    Case("micro-batch as large as the default batch", changed("training.perDeviceBatchSize", 32)),
    Case("smoothed labels", changed("training", {"labelSmoothing": 0.1, "scheduler": "cosine_with_min_lr"})),
    Case("schedule that follows a metric", changed("training.scheduler", "reduce_lr_on_plateau")),
    Case("warm-up of 0 steps", changed("training.warmupSteps", 0)),
    Case("number as a quantity", changed("pod.resources", {"limits": {"cpu": 4}})),
    Case("empty output", changed("output", {})),
    Case(
        "log lines as JSON, and trackers", changed("logging", {"format": "JSON", "reportTo": ["tensorboard", "wandb", "mlflow"]})
    ),
    *pod_cases.ACCEPTED,
    *task_cases.ACCEPTED,
    *stream_cases.ACCEPTED,
]


def _no_terms() -> dict[str, object]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}


_PATHS_OUTSIDE = [".", "..", "../x", "a/../b", "/a", "a/", "a//b", "a/..", "./a"]

REFUSED = [
    Case("unknown field at the top", changed("epochs", 3), "spec.epochs"),
    Case("unknown field inside", changed("training.learning_rate", 0.1), "spec.training.learning_rate"),
    Case("unknown field in a list", changed("datasets.0.hub.split", "train"), "spec.datasets[0].hub.split"),
    Case("unknown affinity", changed("pod.affinity", {"nodeAffinty": {}}), "spec.pod.affinity.nodeAffinty"),
    Case("affinity without alternatives", changed("pod.affinity", _no_terms()), "nodeSelectorTerms"),
    Case("string for a number", changed("training.learningRate", "2e-5"), "spec.training.learningRate"),
    Case("fraction for an integer", changed("training.maxSteps", 1.5), "spec.training.maxSteps"),
    Case("boolean for an integer", changed("training.globalBatchSize", True), "spec.training.globalBatchSize"),
    Case("number for a string", changed("model.hub.name", 5), "spec.model.hub.name"),
    Case("object for a list", changed("datasets", {"hub": {"name": "a"}}), "spec.datasets"),
    Case("no task", changed("task", LEFT_OUT), "spec.task"),
    Case("unknown task", changed("task", "question-answering"), "spec.task", UNKNOWN_TASK),
    Case("number for a task", changed("task", 1), "spec.task"),
    Case("no model", changed("model", LEFT_OUT), "spec.model"),
    Case("no data set", changed("datasets", []), "spec.datasets"),
    Case("model without a source", changed("model", {}), "spec.model", "write exactly one of hub and claim"),
    Case(
        "model with two sources", changed("model.claim", {"claimName": "c"}), "spec.model", "write exactly one of hub and claim"
    ),
    Case("data set without a source", changed("datasets.0", {}), "spec.datasets[0]", "write exactly one of hub and claim"),
    Case(
        "split and fraction",
        changed("datasets.0", {"hub": {"name": "a/b"}, "evalSplit": "test", "evalFraction": 0.1}),
        "spec.datasets[0]",
        "write evalSplit or evalFraction, not both",
    ),
    Case(
        "evaluation path and fraction",
        changed("datasets.0", {"claim": {"claimName": "c", "evalPath": "test.csv"}, "evalFraction": 0.1}),
        "spec.datasets[0]",
        "claim.evalPath already names the evaluation data: remove evalFraction and evalSplit",
    ),
    Case("fraction of 0", changed("datasets.0.evalFraction", 0), "spec.datasets[0].evalFraction"),
    Case("fraction of 1", changed("datasets.0.evalFraction", 1), "spec.datasets[0].evalFraction"),
    Case("labels that are only smoothing", changed("training.labelSmoothing", 1), "spec.training.labelSmoothing"),
    Case("unknown schedule", changed("training.scheduler", "exponential"), "spec.training.scheduler"),
    Case(
        "warm-up of a schedule without one",
        changed("training", {"scheduler": "greedy", "warmupSteps": 0}),
        "spec.training",
        "reduce_lr_on_plateau and greedy have no warm-up: remove warmupSteps and warmupRatio",
    ),
    Case("learning rate of 0", changed("training.learningRate", 0), "spec.training.learningRate"),
    Case("warm-up ratio of 1", changed("training.warmupRatio", 1), "spec.training.warmupRatio"),
    Case("seed too large", changed("training.seed", 4_294_967_296), "spec.training.seed"),
    Case("negative seed", changed("training.seed", -1), "spec.training.seed"),
    Case(
        "epochs and steps",
        changed("training", {"epochs": 1, "maxSteps": 5}),
        "spec.training",
        "write epochs or maxSteps, not both",
    ),
    Case(
        "two warm-ups",
        changed("training", {"warmupSteps": 1, "warmupRatio": 0.1}),
        "spec.training",
        "write warmupSteps or warmupRatio, not both",
    ),
    Case(
        "micro-batch larger than the batch",
        changed("training", {"globalBatchSize": 8, "perDeviceBatchSize": 9}),
        "spec.training",
        "perDeviceBatchSize must not be larger than globalBatchSize",
    ),
    Case(
        "micro-batch larger than the default batch",
        changed("training.perDeviceBatchSize", 33),
        "spec.training",
        "perDeviceBatchSize must not be larger than globalBatchSize",
    ),
    Case(
        "output with claim and volume",
        changed("output", {"claim": {"claimName": "c"}, "volume": {}}),
        "spec.output",
        "write claim or volume, not both",
    ),
    Case(
        "retention with the user's own claim",
        changed("output", {"claim": {"claimName": "c"}, "retention": {"whenDeleted": "Delete"}}),
        "spec.output",
        "retention is for output.volume: your own claim is never deleted",
    ),
    Case(
        "several pods on a ReadWriteOnce volume",
        {**MINIMAL, "distributed": {"nodes": 2}, "output": {"volume": {"accessMode": "ReadWriteOnce"}}},
        "spec",
        "with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany",
    ),
    *(
        Case(f"manager {manager!r}", changed("managedBy", manager), "spec.managedBy")
        for manager in ("", "multikueue", "/x", "Kueue.x-k8s.io/x", "a..b/x", "a/", f"a/{'x' * 62}")
    ),
    Case("size that is not a quantity", changed("output.volume", {"size": "large"}), "spec.output.volume.size"),
    Case("zero nodes", changed("distributed.nodes", 0), "spec.distributed.nodes"),
    Case("endpoint without a scheme", changed("hub.endpoint", "hub.example.com"), "spec.hub.endpoint"),
    Case("endpoint with a password", changed("hub.endpoint", "https://a:b@hub.example.com"), "spec.hub", CREDENTIALS_MESSAGE),
    *(
        Case(f"image {image!r}", changed("pod.image", image), "spec.pod.image")
        for image in ("a/../b", "a/b:1\nc", "Registry/Upper:1", "a b", "a@latest", "https://a/b", "a//b", "/a", "a:b/c")
    ),
    Case("token in the file", changed("hub.token", "hf_x"), "spec.hub.token"),
    Case(
        "secret of another namespace",
        changed("hub.tokenSecretRef", {"name": "a", "namespace": "b"}),
        "spec.hub.tokenSecretRef.namespace",
    ),
    Case("repository without an owner", changed("publish", {"repository": "model"}), "spec.publish.repository"),
    Case(
        "deletion of the volume without publishing",
        changed("output", {"retention": {"whenFinished": "Delete"}}),
        "spec",
        "output.retention.whenFinished: Delete would delete the only copy of the model: add publish, or write Retain",
    ),
    Case(
        "variable without a value",
        changed("pod.env", [{"name": "A"}]),
        "spec.pod.env[0]",
        "write exactly one of value and valueFrom",
    ),
    Case(
        "valueFrom without a source",
        changed("pod.env", [{"name": "A", "valueFrom": {}}]),
        "spec.pod.env[0].valueFrom",
        "write exactly one of secretKeyRef and configMapKeyRef",
    ),
    *(
        Case(
            f"variable {name}",
            changed("pod.env", [{"name": name, "value": "x"}]),
            "spec.pod.env[0]",
            RESERVED_VARIABLES_MESSAGE,
        )
        for name in (
            "LD_PRELOAD",
            "PYTHONPATH",
            "PET_NNODES",
            "MASTER_ADDR",
            "HF_ENDPOINT",
            "HF_TOKEN",
            "PATH",
            "RANK",
            "PROMETHEUS_MULTIPROC_DIR",
        )
    ),
    Case("unknown format of the log", changed("logging.format", "XML"), "spec.logging.format"),
    Case("unknown tracker", changed("logging.reportTo", ["mlflow", "comet"]), "spec.logging.reportTo[1]"),
    Case("no tracker in the list", changed("logging.reportTo", []), "spec.logging.reportTo"),
    Case("variable with an invalid name", changed("pod.env", [{"name": "A-B", "value": "x"}]), "spec.pod.env[0].name"),
    *pod_cases.REFUSED,
    Case("hostPath volume", changed("pod.volumes", [{"mountPath": "/mnt/a", "hostPath": {"path": "/"}}]), "hostPath"),
    *(
        Case(
            f"mount at {path}",
            changed("pod.volumes", [{"mountPath": path, "configMap": {"name": "a"}}]),
            "spec.pod.volumes[0].mountPath",
        )
        for path in ("/opt/venv", "/mnt", "/mnt/", "/mnt/../etc", "mnt/a", "/mnt/a/.", "/dev/shm")
    ),
    Case(
        "label of this operator",
        changed("pod.labels", {"finetune.dev/finetunejob": "another"}),
        "spec.pod.labels",
        RESERVED_KEYS_MESSAGE,
    ),
    *(
        Case(
            f"annotation {key}",
            changed("pod.annotations", {key: "x"}),
            "spec.pod.annotations",
            RESERVED_KEYS_MESSAGE,
        )
        for key in ("batch.kubernetes.io/job-completion-index", "container.apparmor.security.beta.kubernetes.io/trainer")
    ),
    Case("label value with a space", changed("pod.labels", {"team": "a b"}), "spec.pod.labels.team"),
    Case("root user", changed("pod.securityContext", {"runAsUser": 0}), "spec.pod.securityContext.runAsUser"),
    Case("privileged", changed("pod.securityContext", {"privileged": True}), "spec.pod.securityContext.privileged"),
    Case("host network", changed("pod.hostNetwork", True), "spec.pod.hostNetwork"),
    Case("a million nodes", changed("distributed.nodes", 1_000_000), "spec.distributed.nodes"),
    Case("claim with a control character", changed("cache", {"claimName": "a\u0007"}), "spec.cache.claimName"),
    Case("deadline of 0", changed("activeDeadlineSeconds", 0), "spec.activeDeadlineSeconds"),
    Case("negative time to live", changed("ttlSecondsAfterFinished", -1), "spec.ttlSecondsAfterFinished"),
    *(
        Case(f"path {path}", changed("model", {"claim": {"claimName": "c", "path": path}}), "spec.model.claim.path")
        for path in _PATHS_OUTSIDE
    ),
    *task_cases.REFUSED,
    *stream_cases.REFUSED,
]

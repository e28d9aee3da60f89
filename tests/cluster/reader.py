"""A pod of the trainer image that mounts claims. It reads volumes and loads models, as a pod of a user would."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from cluster.kube import Namespace, Object


@dataclasses.dataclass(frozen=True)
class Reader:
    """A running pod. It mounts each claim at /claims/NAME."""

    namespace: Namespace
    name: str

    def python(self, code: str) -> Any:
        """Run a program in the pod. Parse the last line that it prints as JSON, and return it."""
        done = self.namespace.kubectl("exec", "--stdin", self.name, "--", "python", "-", stdin=code)
        assert done.stdout.strip(), f"the program printed nothing: {done.stderr}"
        return json.loads(done.stdout.strip().splitlines()[-1])


def start_reader(namespace: Namespace, name: str, image: str, claims: list[str], environment: Mapping[str, Object]) -> Reader:
    """Create the pod and wait until it runs. environment: ``value`` or ``valueFrom`` by name, as in a pod."""
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [
                    {
                        "name": "reader",
                        "image": image,
                        "command": ["tini", "--", "sleep", "infinity"],
                        "env": [{"name": key, **value} for key, value in environment.items()],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [
                            {"name": "tmp", "mountPath": "/tmp"},
                            *({"name": claim, "mountPath": f"/claims/{claim}"} for claim in claims),
                        ],
                    }
                ],
                "volumes": [
                    {"name": "tmp", "emptyDir": {}},
                    *({"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims),
                ],
            },
        }
    )
    namespace.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")
    return Reader(namespace, name)

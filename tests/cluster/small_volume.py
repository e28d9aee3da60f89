"""A small volume that tests can fill: a tmpfs on one node of the cluster, and a claim for it."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from cluster.kube import Namespace, Object, kubectl

# A privileged pod mounts the volume where the kubelet of the node sees it. The namespace of the jobs would refuse such a pod.
_HELPERS = Namespace("kube-system")
_AS_THE_KUBELET = """
kubelet=$(grep -lx kubelet /proc/[0-9]*/comm | head -n 1 | cut -d / -f 3)
exec nsenter --target "$kubelet" --mount -- sh -euc "$0"
"""
_FILL = """
import contextlib, tempfile
with tempfile.NamedTemporaryFile(dir="DIRECTORY", prefix="filler-", delete=False, buffering=0) as stream:
    with contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
"""
_EMPTY = """
import pathlib
for path in pathlib.Path("DIRECTORY").glob("filler-*"):
    path.unlink()
"""


def fill(jobs: Namespace, pod: str, directory: str) -> None:
    """Fill the volume from a pod that mounts it. A second call also fills space that has become free since."""
    jobs.kubectl("exec", "--stdin", pod, "--", "python", "-", stdin=_FILL.replace("DIRECTORY", directory))


def make_room(jobs: Namespace, pod: str, directory: str) -> None:
    """Delete the files that fill() wrote."""
    jobs.kubectl("exec", "--stdin", pod, "--", "python", "-", stdin=_EMPTY.replace("DIRECTORY", directory))


@contextlib.contextmanager
def small_volume(jobs: Namespace, name: str, mebibytes: int, image: str) -> Iterator[str]:
    """Create the volume and return the name of its claim, in the namespace of the jobs. Skip if no pod may mount it on a node."""
    unique = f"{jobs.name}-{name}"
    node = json.loads(kubectl("get", "nodes", "--output=json").stdout)["items"][0]["metadata"]
    directory = f"/var/lib/{unique}"
    _HELPERS.apply(_helper(unique, node["name"], image))
    try:
        ready = _HELPERS.kubectl("wait", "--for=condition=Ready", f"pod/{unique}", "--timeout=60s", check=False)
        mount = f"mkdir -p {directory} && mount -t tmpfs -o size={mebibytes}m,mode=0777 tmpfs {directory}"
        done = _HELPERS.kubectl("exec", unique, "--", "sh", "-euc", _AS_THE_KUBELET, mount, check=False)
        if ready.returncode or done.returncode:
            pytest.skip(f"needs a cluster where a privileged pod can mount a small volume: {ready.stderr}{done.stderr}".strip())
        try:
            jobs.apply(_volume(unique, directory, node["labels"]["kubernetes.io/hostname"], mebibytes, jobs.name, name))
            jobs.apply(_claim(name, unique, mebibytes))
            yield name
        finally:
            jobs.kubectl("delete", "persistentvolumeclaim", name, "--ignore-not-found", "--wait=false")
            kubectl("delete", "persistentvolume", unique, "--ignore-not-found", "--wait=false")
            # The lazy unmount removes the mount point at once. Pods that still terminate keep the volume until they end.
            unmount = f"umount --lazy {directory} && rmdir {directory}"
            _HELPERS.kubectl("exec", unique, "--", "sh", "-euc", _AS_THE_KUBELET, unmount)
    finally:
        _HELPERS.kubectl("delete", "pod", unique, "--wait=false", "--grace-period=0", "--force")


def _helper(name: str, node: str, image: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "hostPID": True,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "mounts",
                    "image": image,
                    "command": ["sleep", "infinity"],
                    "securityContext": {"privileged": True, "runAsUser": 0, "runAsNonRoot": False},
                }
            ],
        },
    }


def _volume(unique: str, directory: str, hostname: str, mebibytes: int, namespace: str, claim: str) -> Object:
    on_the_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": unique},
        "spec": {
            "capacity": {"storage": f"{mebibytes}Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": directory, "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_the_node]}]}},
        },
    }


def _claim(name: str, volume: str, mebibytes: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": volume,
            "resources": {"requests": {"storage": f"{mebibytes}Mi"}},
        },
    }

"""Functions that render the chart with Helm."""

import pathlib
import shutil
import subprocess
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
HELM = shutil.which("helm")
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"


def helm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run helm; with ``check``, raise AssertionError with its error message if it fails."""
    done = subprocess.run([str(HELM), *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done


def render(*arguments: str) -> list[Object]:
    """Return every object of the chart. arguments: those of `helm template`."""
    text = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *arguments).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def installed(*arguments: str) -> list[Object]:
    """Return the same objects without those that only `helm test` creates."""
    return [document for document in render(*arguments) if "helm.sh/hook" not in document["metadata"].get("annotations", {})]


def only(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """Return the only object of a kind, or of a kind and a name."""
    [found] = [document for document in objects if document["kind"] == kind and name in (None, document["metadata"]["name"])]
    return found


def pod_of(objects: list[Object]) -> Object:
    """Return the spec of the operator's pod."""
    spec: Object = only(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def defaults_text(objects: list[Object]) -> str:
    """Return the operator's defaults file as text."""
    return str(only(objects, "ConfigMap")["data"]["site.yaml"])


def refusal(*arguments: str) -> str:
    """Return Helm's error message if it does not render the chart, else an empty string."""
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *arguments, check=False)
    return done.stderr if done.returncode else ""

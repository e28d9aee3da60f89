"""The objects of `helm test`: pods that pass Pod Security "restricted", and a FineTuneJob that trains without the Hub."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from chart.rendering import ROOT
from finetune_operator import smoke
from finetune_operator.defaults import OperatorDefaults

DEFAULTS = OperatorDefaults.model_validate(
    {
        "trainerImage": "example.com/trainer:1",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "securityContext": {"runAsUser": None, "fsGroup": 2000},
    },
    by_alias=True,
    by_name=False,
)


def test_the_writer_runs_on_the_nodes_of_training_pods_and_passes_restricted() -> None:
    pod = smoke.build_writer("smoke", DEFAULTS, {"requests": {"cpu": "100m"}})["spec"]
    assert (pod["nodeSelector"], pod["imagePullSecrets"]) == ({"pool": "gpu"}, [{"name": "registry"}])
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 2000}
    assert pod["automountServiceAccountToken"] is False
    [container] = pod["containers"]
    assert container["image"] == "example.com/trainer:1"
    assert container["resources"] == {"requests": {"cpu": "100m"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_volume_takes_the_default_class_unless_one_is_named() -> None:
    assert "storageClassName" not in smoke.build_claim("1Gi", "")["spec"]
    assert smoke.build_claim("1Gi", "fast")["spec"]["storageClassName"] == "fast"


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({}, "no operator has seen it yet"),
        ({"phase": "Running", "message": "step 2 of 3"}, "Running: step 2 of 3"),
        (
            {"phase": "Failed", "message": "it broke", "failure": {"message": "it broke", "hint": "Mend it."}},
            "Failed: it broke: Mend it.",
        ),
    ],
)
def test_a_job_is_described_in_one_line(status: dict[str, Any], line: str) -> None:
    assert smoke.describe_job({"status": status}) == line


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"phase": "Succeeded"}, "Succeeded"),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}],
            },
            "Pending: 0/2 nodes are available",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}],
            },
            "Pending: ImagePullBackOff: no such image",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"reason": "Error", "message": "No space left on device"}}}],
            },
            "Failed: Error: No space left on device",
        ),
    ],
)
def test_a_pod_is_described_with_what_it_waits_for(status: dict[str, Any], line: str) -> None:
    assert smoke.describe_pod({"status": status}) == line


@pytest.mark.parametrize(
    ("attempts", "enabled", "line"),
    [
        (["gaierror", "timeout"], True, "other pods can't connect to training pods"),
        (["ConnectionRefusedError", "reached"], True, "the cluster's network plugin does not enforce NetworkPolicies"),
        (["reached"], False, "site.networkPolicy is off"),
        (["ConnectionRefusedError"] * 10, True, "other pods can't connect to training pods"),
        (["gaierror", "ConnectionRefusedError"], True, "could not be tried"),
    ],
)
def test_it_says_whether_other_pods_reach_a_training_pod(attempts: list[str], enabled: bool, line: str) -> None:
    assert line in smoke.describe_isolation(attempts, enabled)


def test_the_job_trains_on_the_writer_s_files_without_the_hub(tmp_path: pathlib.Path) -> None:
    packages = os.pathsep.join(str(ROOT / folder) for folder in ("crds", "operator", "trainer_image"))
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "huggingface")}
    environment = {**os.environ, **nowhere, "PYTHONPATH": packages}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    claim = tmp_path / "claim"
    assert "80 rows" in run("finetune_trainer.commands.smoke", str(claim))
    job = tmp_path / "job.json"
    job.write_text(json.dumps({**smoke.build_job("smoke", {}), "metadata": {"name": "smoke"}}), encoding="utf-8")
    run("finetune_trainer", "run", str(job), "--claim", f"smoke={claim}")
    assert (claim / "output/report.json").exists()
    assert (claim / "output/model/model.safetensors").exists()

"""The health check for Argo CD in docs/operations.md, run by Lua 5.1 as Argo CD does it, against the status of each phase."""

import pathlib
from typing import Any

import pytest
import yaml

from finetune_api.status import Phase
from finetune_operator.policy.status import blocked
from unit.operator.builders import NOW, build_record, job_manifest, running
from unit.operator.test_conditions import PHASES

lua51 = pytest.importorskip("lupa.lua51", reason="needs lupa, an interpreter of Lua: pip install -e '.[dev]'")
PAGE = pathlib.Path(__file__).parents[3] / "docs/operations.md"
KEY = "resource.customizations.health.finetune.dev_FineTuneJob"
# Everything that is not over and not suspended is Progressing, so the next sync wave starts after the training.
HEALTH = {("Suspended", "Suspended"): "Suspended", ("Succeeded", "Completed"): "Healthy", ("Failed", "DataError"): "Degraded"}


@pytest.fixture(scope="module")
def script() -> str:
    [block] = (block for block in PAGE.read_text().split("```yaml\n") if KEY in block)
    found: str = yaml.safe_load(block.partition("```")[0])["data"][KEY]
    return found


def assess(script: str, manifest: dict[str, Any]) -> tuple[str, str]:
    """Return status and message that Argo CD shows."""
    lua = lua51.LuaRuntime()
    lua.globals().obj = lua.table_from(manifest, recursive=True)
    health = lua.execute(script)
    return health["status"], health["message"]


@pytest.mark.parametrize(("phase", "reason"), PHASES)
def test_each_phase_has_a_health(script: str, phase: Phase, reason: str) -> None:
    manifest = job_manifest(status=running(phase=phase, reason=reason, message="in words", observed_generation=1))
    assert assess(script, manifest) == (HEALTH.get((phase, reason), "Progressing"), "in words")


def test_a_job_without_a_status_is_progressing(script: str) -> None:
    assert assess(script, job_manifest()) == ("Progressing", "the operator has not seen it yet")


def test_a_blocked_job_is_degraded_and_says_why(script: str) -> None:
    stuck = blocked(running(), build_record(), "Pending", "NameTaken", "Service news-gang is there", NOW)
    assert assess(script, job_manifest(status=stuck)) == ("Degraded", "Service news-gang is there")


def test_the_status_of_an_earlier_spec_is_not_the_health(script: str) -> None:
    status = running(phase="Succeeded", reason="Completed", message="done", observed_generation=1)
    manifest = job_manifest(status=status, generation=2)
    assert assess(script, manifest) == ("Progressing", "done")

"""The table of findings is complete, the page shows all of it, and every finding and every threshold is used by the trainer."""

import pathlib
import re

import pytest

from finetune_api import findings, findings_page
from finetune_api.findings import FINDINGS, FindingType

ROOT = pathlib.Path(__file__).parents[3]
PAGE = findings_page.render()
CHECKS = "".join(path.read_text() for path in sorted((ROOT / "trainer_image/finetune_trainer/findings").glob("*.py")))
TABLE = (ROOT / "crds/finetune_api/findings.py").read_text()
THRESHOLDS = re.findall(r"^([A-Z_]+): Final = [\d.]+$", TABLE, re.MULTILINE)


def test_the_committed_page_is_what_is_generated() -> None:
    assert (ROOT / "docs/findings.md").read_text(encoding="utf-8") == PAGE, "run make generate"


@pytest.mark.parametrize("kind", FindingType)
def test_every_finding_has_one_row_with_its_condition_its_remedy_and_its_source(kind: FindingType) -> None:
    info = FINDINGS[kind]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |")]
    assert [cell.strip() for cell in row.strip("|").split("|")[1:]] == [info.condition, info.remedy, info.known, info.source]
    assert info.condition.endswith(".")
    assert not info.remedy.endswith("."), "a message ends with it"
    assert f"FindingType.{kind.name}" in CHECKS, "no check raises it"


def test_every_source_is_cited_and_listed() -> None:
    assert {info.source for info in FINDINGS.values()} == set(findings_page.SOURCES)
    assert set(FINDINGS) == set(FindingType)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_every_threshold_is_used_by_a_check_and_shown_in_the_table(name: str) -> None:
    assert len(re.findall(rf"\b{name}\b", CHECKS)) > 1, "imported and used"
    shown = {"COURSE_SHARE", "MIN_SHARE_OF_STEPS", "MAX_FINDINGS"}  # a quarter, in words; the others are above the table
    assert name in shown or len(re.findall(rf"\b{name}\b", TABLE)) > 1
    assert findings.COURSE_SHARE == 0.25

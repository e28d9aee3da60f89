"""The table of reasons: whole, in the page that shows it, and of nothing that never happens."""

import pathlib
import re

import pytest

from finetune_api import reasons_page
from finetune_api.reasons import VERDICTS, Reason

ROOT = pathlib.Path(__file__).parents[3]
PAGE = reasons_page.render()
TABLE = ROOT / "crds/finetune_api/reasons.py"
# What a pod or the operator raises, reports or writes down; a reason that is only looked up or compared is not enough.
SOURCES = [
    path.read_text(encoding="utf-8")
    for folder in ("crds/finetune_api", "operator/finetune_operator", "trainer_image/finetune_trainer")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != TABLE
]


def test_the_committed_page_is_what_is_generated() -> None:
    assert (ROOT / "docs/reasons.md").read_text(encoding="utf-8") == PAGE, "run make generate"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_one_row_with_its_meaning_its_budget_and_its_hint(reason: Reason) -> None:
    verdict = VERDICTS[reason]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{reason}` |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5, "a bar in a text would end its cell"
    meaning, again, hint = (cell.strip() for cell in row.strip("|").split("|")[1:])
    assert (meaning, hint) == (verdict.meaning, verdict.hint)
    assert again.startswith("no" if verdict.budget is None else f"`{verdict.budget}`")
    assert meaning.endswith(".")
    assert "." not in meaning.replace("spec.", "").replace("recovery.", "")[:-1], "one sentence"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_produced_somewhere(reason: Reason) -> None:
    named = re.compile(rf"\bReason\.{reason.name}\b(?!\])")  # Reason.X] looks it up in the table
    compared = re.compile(rf"(==|!=|\bis|\bis not|\bnot in|\bin) Reason\.{reason.name}\b")
    assert any(len(named.findall(text)) > len(compared.findall(text)) for text in SOURCES), f"nothing says {reason}"


def test_only_what_may_be_tried_again_has_a_budget() -> None:
    for verdict in VERDICTS.values():
        assert (verdict.budget is not None) == verdict.retry
        assert not verdict.disruption or (verdict.budget == "maxPreemptions" and not verdict.symptom)
        assert not verdict.external or verdict.retry

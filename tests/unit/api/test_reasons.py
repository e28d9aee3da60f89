"""The table of reasons is complete, the page shows all of it, and every reason occurs in the code."""

import pathlib
import re

import pytest

from finetune_api import reasons_page
from finetune_api.reasons import REASONS, Reason

ROOT = pathlib.Path(__file__).parents[3]
PAGE = reasons_page.render()
TABLE = ROOT / "crds/finetune_api/reasons.py"
# The code that raises, reports or writes reasons.
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
    info = REASONS[reason]
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{reason}` |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5, "a bar in a text would end its cell"
    meaning, retry, hint = (cell.strip() for cell in row.strip("|").split("|")[1:])
    assert (meaning, hint) == (info.meaning, info.hint)
    assert retry.startswith("no" if info.budget is None else f"`{info.budget}`")
    assert meaning.endswith(".")
    assert "." not in meaning.replace("spec.", "").replace("recovery.", "")[:-1], "one sentence"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_produced_somewhere(reason: Reason) -> None:
    named = re.compile(rf"\bReason\.{reason.name}\b(?!\])")  # Reason.X] is only a look-up in the table
    compared = re.compile(rf"(==|!=|\bis|\bis not|\bnot in|\bin) Reason\.{reason.name}\b")
    assert any(len(named.findall(text)) > len(compared.findall(text)) for text in SOURCES), f"no code produces {reason}"


def test_only_reasons_with_a_retry_have_a_budget() -> None:
    for info in REASONS.values():
        assert (info.budget is not None) == (info.retry or info.retry_after_checkpoint)
        assert not (info.retry and info.retry_after_checkpoint)
        assert not info.disruption or (info.budget == "maxPreemptions" and not info.symptom)
        assert not info.external or info.retry

"""The models and the hostile specs. A test on a cluster sends the same specs to a real API server."""

import json

import pytest

from finetune_api.reasons import FineTuneError
from finetune_api.resource import parse_spec
from unit.operator.hostile import Hostile, hostile_specs
from unit.operator.pod_security import violations
from unit.operator.test_pod_security import DEFAULTS, check_identity, check_isolation, children_of, template_of


@pytest.mark.parametrize("case", list(hostile_specs()), ids=lambda case: case.name)
def test_a_hostile_spec_is_refused_with_a_sentence_or_is_harmless(case: Hostile) -> None:
    if case.says is None:
        template = template_of(children_of(case.spec, DEFAULTS))
        assert violations(template) == []
        check_isolation(template, case.spec)
        check_identity(template, DEFAULTS)
        return
    with pytest.raises(FineTuneError) as refusal:
        parse_spec(json.loads(json.dumps(case.spec)))
    assert case.says in refusal.value.message
    assert len(refusal.value.message) < 3000, "the message names the mistake and does not repeat the value"

"""Every rule of the detector has its words, its causes and its row of the benchmark; none is forgotten by a table."""

from __future__ import annotations

import pytest

from altgrad.collapse import CollapseDetector
from altgrad.config.train_config import TrainConfig
from altgrad.report.advising.advice import CAUSES_BY_RULE
from altgrad.report.advising.sweep_evidence import happened
from altgrad.show.glossary import RULES
from bench.detectors.own_rules import ALONE
from tests.support.results.written_runs import row

JUDGES = CollapseDetector(TrainConfig(), None).state_dict()["rules"].keys()


def test_the_tables_of_rules_have_those_of_the_detector() -> None:
    for table in (CAUSES_BY_RULE, RULES, ALONE):
        assert set(table) == set(JUDGES)


@pytest.mark.parametrize("rule", JUDGES)
def test_a_verdict_has_a_plain_sentence_of_its_own(rule: str) -> None:
    said = happened(row(0, collapse_rule=rule, collapse_step=40, max_steps=100))
    assert "step 40 of 100" in said and "collapsed at" not in said

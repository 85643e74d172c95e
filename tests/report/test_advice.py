"""The advice of a failure report: it follows from what was measured, and the recipe of the run accepts it."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altgrad.config.train_config import TrainConfig
from altgrad.report import failure_report
from altgrad.report.advising.advice import advise
from altgrad.report.evidence import Evidence
from altgrad.results import Run, Verdict
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import write_ended_run

pytestmark = pytest.mark.long

STALLED = Verdict(100, "stalled", "realised_displacement", 0.02, 0.1, "below 0.1 at 3 measurements")
KAHAN = {"update_rounding": "kahan"}
OVERFLOWN = Verdict(80, "diverged", "loss", 5.0, 4.0)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "advised")


def what_to_try(run: Run) -> str:
    return failure_report(run).split("## What to try\n")[1].split("\n## ")[0]


def advice_for(run: Run) -> list[dict[str, Any]]:
    return [dict(advice.changes) for advice in advise(Evidence.of(run))]


def frozen_steps() -> list[dict[str, float]]:
    return [{"step": s, "loss": 4.0, "realised_displacement": 0.02, "stall_rate": 0.99} for s in (25, 50, 75, 100)]


def test_a_stall_asks_for_master_weights_stochastic_rounding_and_mantissa(folder: Folder) -> None:
    run = write_ended_run(folder, STALLED, {"format": "E7M0", "master_weights": False}, steps=frozen_steps())
    assert advice_for(run) == [
        {"master_weights": True},
        {"update_rounding": "stochastic"},
        {"weight_format": "E5M2"},
        {"enable_emergency_shift": True},
    ]
    text = what_to_try(run)
    assert "1. `master_weights: true`: " in text
    assert "realised displacement 0.02, step 100; stall rate 0.99, step 100" in text


def test_a_stall_in_spite_of_stochastic_rounding_asks_for_kahan_and_one_in_spite_of_that_for_masters(
    folder: Folder,
) -> None:
    for rule, expected in (("stochastic", [{"update_rounding": "kahan"}]), ("kahan", []), ("eco", [KAHAN])):
        config = {"format": "E5M2", "master_weights": False, "update_rounding": rule}
        run = write_ended_run(Folder.at(f"{folder.path}_{rule}"), STALLED, config, steps=frozen_steps())
        advised = advice_for(run)
        assert advised[0] == {"master_weights": True} and [a for a in advised if "update_rounding" in a] == expected


def test_no_advice_is_one_that_the_recipe_of_the_run_refuses_or_that_leaves_the_tensor_as_it_is(folder: Folder) -> None:
    rows = [{"step": 60, "layer": "a", "site": "gradient", "underflow_rate": 0.999}]
    recipe = {"recipe": "torchao_rowwise"}  # whose gemms set the block of every operand
    run = write_ended_run(folder, Verdict(200, "never_learned", "loss", 5.5, 5.4), recipe, layers=rows)
    assert not any("scale_granularity" in advised for advised in advice_for(run))
    with pytest.raises(ValueError, match="scale_granularity='row' changes nothing"):
        TrainConfig(**recipe, scale_granularity="row")
    rows = [{"step": 60, "layer": "a", "site": "gradient", "overflow_rate": 0.5}]
    hfp8 = write_ended_run(Folder.at(f"{folder.path}_hfp8"), OVERFLOWN, {"recipe": "hfp8"}, layers=rows)
    assert {"scaling": "dynamic"} not in advice_for(hfp8)  # its gradients have a scale, its activations have none
    rows = [rows[0] | {"site": "activation"}]
    other = write_ended_run(Folder.at(f"{folder.path}_activation"), OVERFLOWN, {"recipe": "hfp8"}, layers=rows)
    assert {"scaling": "dynamic"} in advice_for(other)


def test_advice_is_for_the_casts_at_the_verdict(folder: Folder) -> None:
    rows = [{"step": 60, "layer": "a", "site": "gradient", "overflow_rate": 0.5}]
    phases = [{"from_step": 50, "gradient_format": "E3M4"}]
    config = {"format": "E4M3", "scaling": "none", "phases": phases}
    advised = advice_for(write_ended_run(folder, OVERFLOWN, config, layers=rows))
    assert {"scaling": "dynamic"} in advised
    assert not any("gradient_format" in one for one in advised)  # the phase would set it again
    early = [rows[0] | {"step": 30}]
    before = write_ended_run(Folder.at(f"{folder.path}_early"), replace(OVERFLOWN, step=40), config, layers=early)
    assert {"gradient_format": "E5M2"} in advice_for(before)


def test_the_format_at_the_verdict_counts_with_the_shifts_before_it_and_not_those_after(folder: Folder) -> None:
    shifts = [
        (50, "format_shift", {"from": "E7M0", "to": "E5M2", "trigger": "stall"}),
        (150, "format_shift", {"from": "E5M2", "to": "E4M3", "trigger": "stall"}),
    ]
    config = {"format": "E7M0", "master_weights": False, "enable_emergency_shift": True, "stop_on_collapse": False}
    run = write_ended_run(folder, STALLED, config, steps=frozen_steps(), events=shifts)
    assert {"weight_format": "E3M4"} in advice_for(run)  # E5M2 with two exponent bits turned into mantissa


def test_an_overflow_in_one_layer_asks_for_scaling_range_and_that_layer(folder: Folder) -> None:
    layers = [
        {"step": 60, "layer": name, "site": "gradient", "overflow_rate": rate}
        for name, rate in {"h.0": 0.002, "h.1": 0.001, "h.2": 0.0, "lm_head": 0.25}.items()
    ]
    verdict = Verdict(80, "diverged", "loss", 5.0, 4.0)
    run = write_ended_run(folder, verdict, {"format": "E4M3", "scaling": "none"}, layers=layers)
    assert advice_for(run) == [
        {"scaling": "dynamic"},
        {"layer_formats": {"lm_head": "BF16"}},
        {"gradient_format": "E5M2"},
        {"enable_partition_clipping": True},
    ]
    assert "overflow rate 0.25 at the gradient of `lm_head`, step 60" in what_to_try(run)


def test_an_underflow_asks_for_scaling_and_exponent_bits(folder: Folder) -> None:
    layers = [{"step": 60, "layer": "a", "site": "gradient", "underflow_rate": 0.999}]
    verdict = Verdict(200, "never_learned", "loss", 5.5, 5.4)
    run = write_ended_run(folder, verdict, {"format": "E0M7", "scaling": "none"}, layers=layers)
    assert advice_for(run) == [{"scaling": "dynamic"}, {"gradient_format": "E2M5"}]
    other = write_ended_run(Folder.at(f"{folder.path}_scaled"), verdict, {"format": "E0M7"}, layers=layers)
    assert advice_for(other) == [{"scale_granularity": "row"}, {"gradient_format": "E2M5"}]


def test_a_shift_is_no_advice_where_it_would_make_the_grid_coarser(folder: Folder) -> None:
    run = write_ended_run(folder, STALLED, {"format": "E3M4", "master_weights": False}, steps=frozen_steps())  # to E5M2
    assert {"enable_emergency_shift": True} not in advice_for(run)


def test_infinities_ask_for_saturation_and_smaller_steps_and_a_shift_where_there_is_one(folder: Folder) -> None:
    steps = [{"step": s, "loss": 3.0 if s < 40 else 9.0, "non_finite_gradients": float(s > 45)} for s in range(1, 51)]
    verdict = Verdict(50, "non_finite", "non_finite_gradients", 1.0, 0.0)
    config = {"format": "E5M2", "overflow": "inf", "gradient_clip": 0.0, "learning_rate": 3e-3}
    steps_smaller = [{"gradient_clip": 1.0}, {"learning_rate": 1e-3}]
    assert advice_for(write_ended_run(folder, verdict, config, steps=steps)) == [
        {"overflow": "saturate"},
        *steps_smaller,
    ]
    other = write_ended_run(
        Folder.at(f"{folder.path}_e4m3"), verdict, config | {"format": "E4M3", "overflow": "format"}, steps=steps
    )
    assert advice_for(other) == [{"enable_emergency_shift": True}, *steps_smaller]


def test_without_evidence_nothing_is_advised_and_the_report_says_so(folder: Folder) -> None:
    run = write_ended_run(folder, Verdict(80, "gap_to_baseline", "gap_to_baseline", 1.2, 1.0))
    assert advice_for(run) == []
    text = what_to_try(run)
    assert "Nothing that was measured points to a cause" in text
    assert "`use_shadow: true`" in text and "`diagnostic_interval" not in text


@functools.cache
def configs() -> list[TrainConfig]:
    """What advice may meet."""
    return [
        TrainConfig(format=fmt, scaling=scaling, master_weights=master, **more)
        for fmt, scaling, master, more in itertools.product(
            ["E0M7", "E3M4", "E5M2", "E7M0", "BF16", "FP32"],
            ["none", "dynamic", "delayed"],
            [True, False],
            [
                {},
                {"update_rounding": "stochastic", "rounding": "stochastic", "enable_partition_clipping": True},
                {"enable_emergency_shift": True, "amax_factor": 0.5, "layer_formats": {"lm_*": "BF16"}},
                {"gradient_clip": 0.0, "gradient_format": "BF16", "weight_decay": 0.0},
            ],
        )
    ]


RULES = ["stalled", "non_finite", "diverged", "never_learned", "rank_collapse", "other"]


@pytest.mark.parametrize("rule", RULES)
def test_advice_is_never_what_the_config_has_and_always_a_config_that_is_accepted(folder: Folder, rule: str) -> None:
    worst = {"overflow_rate": 0.5, "underflow_rate": 0.9, "stall_rate": 1.0, "stable_rank": 1.0}
    sites = ("weight", "activation", "gradient", "update")
    run = write_ended_run(
        folder,
        Verdict(100, rule, "loss", 5.0, 4.0),
        steps=[
            {"step": s, "loss": 2.0 + s / 50, "realised_displacement": 0.01, "gradient_cosine_similarity": 0.1}
            for s in range(20, 101, 20)
        ],
        layers=[{"step": 60, "layer": "lm_head", "site": site, **worst} for site in sites],
    )
    evidence = Evidence.of(run)
    for config in configs()[RULES.index(rule) % 5 :: 5]:  # no choice above has five values: each is among them
        advice = [dict(advice.changes) for advice in advise(replace(evidence, config=config))]
        assert advice or config.format in ("BF16", "FP32")
        fields_set = [field for changes in advice for field in changes]
        assert len(fields_set) == len(set(fields_set)), "two values for one field contradict each other"
        for changes in advice:
            assert any(getattr(config, field) != value for field, value in changes.items())
            assert config.altered(**changes) != config

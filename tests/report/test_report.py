"""Failure and sweep reports, from folders written by hand whose story is known."""

from __future__ import annotations

import functools
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS, find_format
from altgrad.report import failure_report, sweep_report, write_failure_report
from altgrad.report.advice import advise
from altgrad.report.alternatives import more_exponent, more_mantissa
from altgrad.report.evidence import Evidence
from altgrad.results import Run, RunWriter, Verdict, read_run
from altgrad.storage.folder import Folder

NAN = math.nan
STALLED = Verdict(100, "stalled", "realised_displacement", 0.02, 0.1, "below 0.1 at 3 measurements")


def write_run(
    folder: Folder,
    verdict: Verdict | None,
    config: dict[str, Any] | None = None,
    steps: Iterable[dict[str, float]] = (),
    layers: Iterable[dict[str, Any]] = (),
    events: Iterable[tuple[int, str, dict[str, Any]]] = (),
) -> Run:
    writer = RunWriter(folder, flush_seconds=1e9)
    full = TrainConfig(**(config or {})).model_dump()
    writer.start({"run": folder.name, "sweep": "sweep", "config": full, "intervention": "none"})
    for record in steps:
        writer.step(record)
    writer.layers(layers)
    for step, kind, detail in events:
        writer.event(step, kind, **detail)
    writer.end("collapsed" if verdict else "completed", verdict, {})
    return read_run(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep" / "a_run")


def section(report: str, title: str) -> str:
    return re.split(r"^## ", report, flags=re.M)[
        next(i for i, part in enumerate(re.split(r"^## ", report, flags=re.M)) if part.startswith(title + "\n"))
    ]


def advice_for(run: Run) -> list[dict[str, Any]]:
    return [dict(advice.changes) for advice in advise(Evidence.of(run))]


def test_comparison_and_reports_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, altgrad.compare, altgrad.report; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the whole report


def test_a_run_that_did_not_collapse_has_no_failure_report(folder: Folder) -> None:
    run = write_run(folder, None)
    with pytest.raises(ValueError, match=r"'a_run' is completed; a failure report is for a run that collapsed"):
        failure_report(run)
    with pytest.raises(ValueError, match="collapsed"):
        write_failure_report(folder)
    assert not folder.has("failure_report.md")


def test_the_report_is_written_into_the_folder_and_says_the_facts(folder: Folder) -> None:
    run = write_run(
        folder,
        Verdict(120, "stalled", "realised_displacement", 0.021, 0.1, "below 0.1 since step 60"),
        {"format": "E7M0", "gradient_format": "E5M2", "master_weights": False, "max_steps": 500},
        steps=[{"step": s, "loss": 3 + 2 / s, "elapsed_seconds": 0.5 * s} for s in range(1, 121)]
        + [{"step": 121, "validation_loss": 3.5}],
        events=[
            (60, "format_shift", {"from": "E7M0", "to": "E6M1", "step": 60, "trigger": "stall", "sites": 9}),
            *((s, "clip", {"norm": 2.0 + s, "limit": 1.0}) for s in range(70, 90)),
        ],
    )
    text = write_failure_report(folder)
    assert folder.read_bytes("failure_report.md").decode() == text == failure_report(run)
    assert text.startswith(
        "# Failure report: a_run\n\n**stalled at step 120: realised_displacement 0.021, limit 0.1.**"
    )
    summary = section(text, "Summary")
    assert "| Format as configured | E7M0 (gradient E5M2) |" in summary
    assert "| Format as shifted | E7M0 → E6M1 at step 60 (stall) |" in summary
    assert "| Rule | `stalled`, step 120 |" in summary
    assert "| `realised_displacement` | 0.021 (limit 0.1) |" in summary
    assert "| Training loss | final 3.017 (step 120), best 3.017 (step 120) |" in summary
    assert "| Validation loss | not measured |" in summary  # what came after the verdict is no evidence
    assert "| Duration | 1 min 0 s |" in summary
    events = section(text, "Events")
    assert "| clip | 20 | first | 70 | norm 72, limit 1 |" in events
    assert "| last | 89 |" in events
    assert "trigger stall" in events
    written = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert written is not None and yaml.safe_load(written[1]) == dict(run.config)


def test_layers_are_ranked_by_their_worst_rate_per_site(folder: Folder) -> None:
    rates = {"a": [0.0, 0.0], "b": [0.3, 0.1], "c": [0.0, 0.7]}
    layers = [
        {"step": step, "layer": name, "site": "gradient", "overflow_rate": rate[i]}
        for name, rate in rates.items()
        for i, step in enumerate((50, 100))
    ]
    layers += [{"step": 50, "layer": "a", "site": "weight", "overflow_rate": 0.0}]
    layers += [{"step": 150, "layer": "a", "site": "gradient", "overflow_rate": 1.0}]  # after the verdict: no evidence
    report = failure_report(write_run(folder, STALLED, layers=layers))
    lines = [line for line in section(report, "Overflow by layer").splitlines() if line.startswith("| gradient")]
    assert lines == ["| gradient | `c` | 0.7 | 100 | 0.35 | 0.7 |", "| gradient | `b` | 0.3 | 50 | 0.2 | 0.1 |"]
    assert "0 at every measurement: weight (1 layers)." in section(report, "Overflow by layer")
    assert "By layer: not measured." in section(report, "Stall by layer")


def test_zero_update_regions_say_since_when_a_layer_is_frozen(folder: Folder) -> None:
    fractions = {"thawed": [1.0, 1.0, 0.5], "frozen": [0.4, 0.995, 1.0], "alive": [0.1, 0.1, 0.1]}
    layers = [
        {"step": step, "layer": name, "site": "weight", "zero_update_fraction": values[i], "gradient_sparsity": 0.25}
        for name, values in fractions.items()
        for i, step in enumerate((25, 50, 75))
    ]
    report = failure_report(write_run(folder, STALLED, layers=layers))
    region = section(report, "Zero-update regions")
    assert "1 of 3 layers." in region
    assert [line for line in region.splitlines() if line.startswith("| `")] == [
        "| `frozen` | 1 | 0.798 | 50 |",
        "| `thawed` | 0.5 | 0.833 | – |",
        "| `alive` | 0.1 | 0.1 | – |",
    ]
    assert "| `alive` | 0.25 | 25 | 0.25 | 0.25 |" in section(report, "Gradient sparsity")


def test_the_trend_shows_the_last_five_measurements_before_the_verdict_and_names_what_is_absent(
    folder: Folder,
) -> None:
    steps = [{"step": s, "loss": 4.0, "stall_rate": s / 1000, "stable_rank": NAN} for s in range(10, 130, 10)]
    report = failure_report(write_run(folder, STALLED, {"log_stiffness": True}, steps=steps))
    trend = section(report, "Last 5 diagnostic measurements")
    assert "| Metric | step 60 | step 70 | step 80 | step 90 | step 100 |" in trend
    assert "| Stall rate (share) | 0.06 | 0.07 | 0.08 | 0.09 | 0.1 |" in trend
    assert "| Stable rank | NaN | NaN | NaN | NaN | NaN |" in trend
    absent = [line for line in trend.splitlines() if line.startswith("Not measured (`log_ulp: false`)")]
    assert len(absent) == 1 and "`ulps_moved_mean`" in absent[0]
    assert "log_stiffness: false" not in trend


def test_a_run_that_measured_nothing_still_has_a_report(folder: Folder) -> None:
    report = failure_report(write_run(folder, Verdict(3, "non_finite", "loss", NAN, math.inf)))
    assert "| Training loss | not measured |" in report
    assert "No signal was measured before the verdict." in report
    assert "No diagnostics before the verdict." in report
    assert "(`diagnostic_interval: 50`, the verdict came at step 3)" in report


# --- what to try


def frozen_steps() -> list[dict[str, float]]:
    return [{"step": s, "loss": 4.0, "realised_displacement": 0.02, "stall_rate": 0.99} for s in (25, 50, 75, 100)]


def test_a_stall_asks_for_master_weights_stochastic_rounding_and_mantissa(folder: Folder) -> None:
    run = write_run(folder, STALLED, {"format": "E7M0", "master_weights": False}, steps=frozen_steps())
    assert advice_for(run) == [
        {"master_weights": True},
        {"update_rounding": "stochastic"},
        {"weight_format": "E5M2"},
        {"enable_emergency_shift": True},
    ]
    text = section(failure_report(run), "What to try")
    assert "1. `master_weights: true`: " in text
    assert "realised displacement 0.02, step 100; stall rate 0.99, step 100" in text


def test_the_format_at_the_verdict_counts_with_the_shifts_before_it_and_not_those_after(folder: Folder) -> None:
    shifts = [
        (50, "format_shift", {"from": "E7M0", "to": "E5M2", "trigger": "stall"}),
        (150, "format_shift", {"from": "E5M2", "to": "E4M3", "trigger": "stall"}),
    ]
    config = {"format": "E7M0", "master_weights": False, "enable_emergency_shift": True, "stop_on_collapse": False}
    run = write_run(folder, STALLED, config, steps=frozen_steps(), events=shifts)
    assert {"weight_format": "E3M4"} in advice_for(run)  # E5M2 with two exponent bits turned into mantissa


def test_an_overflow_in_one_layer_asks_for_scaling_range_and_that_layer(folder: Folder) -> None:
    layers = [
        {"step": 60, "layer": name, "site": "gradient", "overflow_rate": rate}
        for name, rate in {"h.0": 0.002, "h.1": 0.001, "h.2": 0.0, "lm_head": 0.25}.items()
    ]
    verdict = Verdict(80, "diverged", "loss", 5.0, 4.0)
    run = write_run(folder, verdict, {"format": "E4M3", "scaling": "none"}, layers=layers)
    assert advice_for(run) == [
        {"scaling": "dynamic"},
        {"layer_formats": {"lm_head": "BF16"}},
        {"gradient_format": "E5M2"},
        {"enable_partition_clipping": True},
    ]
    assert "overflow rate 0.25 at the gradient of `lm_head`, step 60" in section(failure_report(run), "What to try")


def test_a_published_recipe_is_called_by_its_name(folder: Folder) -> None:
    run = write_run(folder, STALLED, {"recipe": "te_delayed"})
    assert "E4M3 (recipe `te_delayed`, gradient E5M2)" in failure_report(run)


def test_an_underflow_asks_for_scaling_and_exponent_bits(folder: Folder) -> None:
    layers = [{"step": 60, "layer": "a", "site": "gradient", "underflow_rate": 0.999}]
    verdict = Verdict(200, "never_learned", "loss", 5.5, 5.4)
    run = write_run(folder, verdict, {"format": "E0M7", "scaling": "none"}, layers=layers)
    assert advice_for(run) == [{"scaling": "dynamic"}, {"gradient_format": "E2M5"}]
    other = write_run(Folder.at(f"{folder.path}_scaled"), verdict, {"format": "E0M7"}, layers=layers)
    assert advice_for(other) == [{"scale_granularity": "row"}, {"gradient_format": "E2M5"}]


def test_a_shift_is_no_advice_where_it_would_make_the_grid_coarser(folder: Folder) -> None:
    run = write_run(folder, STALLED, {"format": "E3M4", "master_weights": False}, steps=frozen_steps())  # to E5M2
    assert {"enable_emergency_shift": True} not in advice_for(run)


def test_infinities_ask_for_saturation_and_smaller_steps_and_a_shift_where_there_is_one(folder: Folder) -> None:
    steps = [{"step": s, "loss": 3.0 if s < 40 else 9.0, "non_finite_gradients": float(s > 45)} for s in range(1, 51)]
    verdict = Verdict(50, "non_finite", "non_finite_gradients", 1.0, 0.0)
    config = {"format": "E5M2", "overflow": "inf", "gradient_clip": 0.0, "learning_rate": 3e-3}
    steps_smaller = [{"gradient_clip": 1.0}, {"learning_rate": 1e-3}]
    assert advice_for(write_run(folder, verdict, config, steps=steps)) == [{"overflow": "saturate"}, *steps_smaller]
    other = write_run(
        Folder.at(f"{folder.path}_e4m3"), verdict, config | {"format": "E4M3", "overflow": "format"}, steps=steps
    )
    assert advice_for(other) == [{"enable_emergency_shift": True}, *steps_smaller]


def test_without_evidence_nothing_is_advised_and_the_report_says_so(folder: Folder) -> None:
    run = write_run(folder, Verdict(80, "gap_to_baseline", "gap_to_baseline", 1.2, 1.0))
    assert advice_for(run) == []
    text = section(failure_report(run), "What to try")
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


@pytest.mark.parametrize("rule", ["stalled", "non_finite", "diverged", "never_learned", "rank_collapse", "other"])
def test_advice_is_never_what_the_config_has_and_always_a_config_that_is_accepted(folder: Folder, rule: str) -> None:
    worst = {"overflow_rate": 0.5, "underflow_rate": 0.9, "stall_rate": 1.0, "stable_rank": 1.0}
    sites = ("weight", "activation", "gradient", "update")
    run = write_run(
        folder,
        Verdict(100, rule, "loss", 5.0, 4.0),
        steps=[
            {"step": s, "loss": 2.0 + s / 50, "realised_displacement": 0.01, "gradient_cosine_similarity": 0.1}
            for s in range(20, 101, 20)
        ],
        layers=[{"step": 60, "layer": "lm_head", "site": site, **worst} for site in sites],
    )
    evidence = Evidence.of(run)
    for config in configs():
        advice = [dict(advice.changes) for advice in advise(replace(evidence, config=config))]
        assert advice or config.format in ("BF16", "FP32")
        fields_set = [field for changes in advice for field in changes]
        assert len(fields_set) == len(set(fields_set)), "two values for one field contradict each other"
        for changes in advice:
            assert any(getattr(config, field) != value for field, value in changes.items())
            assert config.altered(**changes) != config


@pytest.mark.parametrize("name", FORMATS)
def test_alternatives_exist_have_the_width_and_give_what_they_promise(name: str) -> None:
    fmt = find_format(name)
    finer, wider = more_mantissa(fmt), more_exponent(fmt)
    for other in (finer, wider):
        assert other is None or find_format(other).bits == fmt.bits or other in ("BF16", "FP32")
    if finer is not None and finer != "BF16":
        assert find_format(finer).mantissa_bits > fmt.mantissa_bits
    if wider is not None:
        assert find_format(wider).binades > fmt.binades
        assert find_format(wider).exponent_bits != 1  # the grid of E1 is that of E0, scaled


# --- the sweep report


def test_the_sweep_report_links_the_collapses_and_names_what_cannot_be_read(folder: Folder) -> None:
    sweep = Folder.at(folder.path.rsplit("/", 1)[0])
    write_run(folder, STALLED, {"format": "E7M0", "master_weights": False}, steps=frozen_steps())
    write_failure_report(folder)
    write_run(sweep / "bf16", None, steps=[{"step": 1, "validation_loss": 2.0}])
    (sweep / "odd").write_bytes("run.json", b"{broken")
    text = sweep_report(sweep)
    assert "2 runs: 1 completed, 1 collapsed." in text or "2 runs: 1 collapsed, 1 completed." in text
    assert "- `a_run`, E7M0 (stored): stalled at step 100" in text
    assert "([failure report](a_run/failure_report.md))" in text
    assert "- `odd`: " in text and "not JSON" in text


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run here"):
        sweep_report(Folder.at(tmp_path))

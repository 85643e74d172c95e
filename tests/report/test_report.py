"""Failure and sweep reports, from folders written by hand whose story is known."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from altgrad.formats import FORMATS, find_format
from altgrad.report import failure_report, sweep_report, write_failure_report
from altgrad.report.advising.alternatives import more_exponent, more_mantissa
from altgrad.results import Verdict
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import write_ended_run

NAN = math.nan
STALLED = Verdict(100, "stalled", "realised_displacement", 0.02, 0.1, "below 0.1 at 3 measurements")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "sweep" / "a_run")


def section(report: str, title: str) -> str:
    return re.split(r"^## ", report, flags=re.M)[
        next(i for i, part in enumerate(re.split(r"^## ", report, flags=re.M)) if part.startswith(title + "\n"))
    ]


def test_comparison_and_reports_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, altgrad.compare, altgrad.report; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the whole report


def test_a_run_that_did_not_collapse_has_no_failure_report(folder: Folder) -> None:
    run = write_ended_run(folder, None)
    with pytest.raises(ValueError, match=r"'a_run' is completed; a failure report is for a run that collapsed"):
        failure_report(run)
    with pytest.raises(ValueError, match="collapsed"):
        write_failure_report(folder)
    assert not folder.has("failure_report.md")


def test_the_report_is_written_into_the_folder_and_says_the_facts(folder: Folder) -> None:
    run = write_ended_run(
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
        "# Failure report: a_run\n\n**stalled at step 120: realised displacement 0.021, limit 0.1.**"
    )
    summary = section(text, "Summary")
    assert "| Format as configured | E7M0 (gradient E5M2) |" in summary
    assert "| Format as shifted | E7M0 → E6M1 at step 60 (stall) |" in summary
    assert "| Rule | `stalled`, step 120 |" in summary
    assert "| `realised_displacement` | 0.021 (limit 0.1) |" in summary
    assert "| Training loss | final 3.017 (step 120), best 3.017 (step 120) |" in summary
    assert "| Validation loss | not measured |" in summary  # what came after the verdict is no evidence
    assert "| Duration | 1 min 0 s |" in summary
    assert "| Steps | 121 of 500; losses and duration are those up to the verdict, step 120 |" in summary
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
    report = failure_report(write_ended_run(folder, STALLED, layers=layers))
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
    report = failure_report(write_ended_run(folder, STALLED, layers=layers))
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
    report = failure_report(write_ended_run(folder, STALLED, {"log_stiffness": True}, steps=steps))
    trend = section(report, "Last 5 diagnostic measurements")
    assert "| Metric | step 60 | step 70 | step 80 | step 90 | step 100 |" in trend
    assert "| Stall rate (share) | 0.06 | 0.07 | 0.08 | 0.09 | 0.1 |" in trend
    assert "| Stable rank | NaN | NaN | NaN | NaN | NaN |" in trend
    absent = [line for line in trend.splitlines() if line.startswith("Not measured (`log_ulp: false`)")]
    assert len(absent) == 1 and "`ulps_moved_mean`" in absent[0]
    assert "log_stiffness: false" not in trend


def test_a_run_that_measured_nothing_still_has_a_report(folder: Folder) -> None:
    report = failure_report(write_ended_run(folder, Verdict(3, "non_finite", "loss", NAN, math.inf)))
    assert "| Training loss | not measured |" in report
    assert "No signal was measured before the verdict." in report
    assert "No diagnostics before the verdict." in report
    assert "(`diagnostic_interval: 50`, the verdict came at step 3)" in report


# --- what to try


def test_a_published_recipe_is_called_by_its_name(folder: Folder) -> None:
    run = write_ended_run(folder, STALLED, {"recipe": "te_delayed"})
    assert "E4M3 (recipe `te_delayed`, gradient E5M2)" in failure_report(run)


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
    write_ended_run(folder, STALLED, {"format": "E7M0", "master_weights": False}, steps=[{"step": 100, "loss": 4.0}])
    write_failure_report(folder)
    write_ended_run(sweep / "bf16", None, steps=[{"step": 1, "validation_loss": 2.0}])
    (sweep / "odd").write_bytes("run.json", b"{broken")
    text = sweep_report(sweep)
    assert "2 runs: 1 completed, 1 collapsed." in text or "2 runs: 1 collapsed, 1 completed." in text
    assert "- `a_run`, E7M0 (stored): stalled at step 100" in text
    assert "([failure report](a_run/failure_report.md))" in text
    assert "- `odd`: " in text and "not JSON" in text


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run here"):
        sweep_report(Folder.at(tmp_path))

"""What a run is told before its first step, and what it records then: its `run.json`, and the gap that it will measure.

Every rank has the settings, but only the first rank's baseline counts: the others take it over, so that all of them
measure the same gap and stop at the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.branch import branch_record
from altgrad.collapse import BaselineGap, gap_to_baseline
from altgrad.config.fields.config_errors import ConfigError
from altgrad.config.sizes.memory import bytes_per_parameter
from altgrad.experiment.outcome import Report
from altgrad.experiment.provenance import coverage, provenance
from altgrad.quantization.coverage import Coverage
from altgrad.results.reading.common_start import other_beginning
from altgrad.training.trainer import Trainer


@dataclass(frozen=True)
class RunSettings:
    """What a run is called and holds, what it is compared to, and whom it reports to; see `FormatExperimentRunner`."""

    run: str
    sweep: str | None
    intervention: str
    resources: Mapping[str, float] | None
    group: str | None
    baseline: Mapping[int, float] | None
    baseline_start: Mapping[str, Any]
    report: Callable[[Report], None] | None
    report_interval: int
    announce: Callable[[str], None] | None


def start_record(
    settings: RunSettings, trainer: Trainer, earlier: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], BaselineGap | None]:
    """(contents of `run.json`, the gap to measure at each step; None without a comparable baseline).

    earlier: what the attempts before this one held, see `earlier_attempts`.  Announces the rounded share of the model.
    """
    info = _info(settings, trainer, earlier)
    ranks = trainer.ranks
    baseline = ranks.from_first(lambda: settings.baseline)
    difference = ranks.from_first(lambda: other_beginning(settings.baseline_start, info))
    if difference is not None:
        info["no_gap"] = f"the baseline began with {difference}"
    elif baseline is not None:
        return info, gap_to_baseline(trainer.config, trainer.batches.vocabulary, baseline)
    return info, None


def _check_covered(covered: Coverage | None, wanted: str) -> None:
    """Raise ConfigError, in one line, where the config refuses a model with products that nothing here rounds."""
    if wanted != "raise" or covered is None or not covered.uncovered:
        return
    found = ", ".join(f"{one.module} ({one.type}, {one.reason})" for one in covered.uncovered[:3])
    raise ConfigError(
        f"on_uncovered='raise': {len(covered.uncovered)} module(s) multiply without rounding: {found}; register the "
        "kind with register_gemm, or use on_uncovered='warn'"
    )


def _info(settings: RunSettings, trainer: Trainer, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    covered = coverage(trainer)
    _check_covered(covered, trainer.config.on_uncovered)
    if covered is not None and settings.announce is not None and trainer.ranks.first:
        settings.announce(covered.sentence(warned=trainer.config.on_uncovered == "warn"))
    return {
        "run": settings.run,
        "sweep": settings.sweep,
        "intervention": settings.intervention,
        "config": trainer.config.model_dump(mode="json"),
        "resources": settings.resources,
        "earlier": earlier,
        "branch": branch_record(trainer.config),
        "coverage": None if covered is None else covered.record(),
        "bytes_per_parameter": bytes_per_parameter(trainer.config),
        **provenance(trainer),
    }

"""The evidence of a failure report: the tables of one run's folder, read once and cut off at the verdict.

A run may train on after its verdict (`stop_on_collapse: false`).  Later measurements cannot explain the collapse, so
the analysis ends at the verdict's step; only the loss curve shows all steps.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altgrad.config.phases import phase_at
from altgrad.config.recipe import GemmSite, Recipe
from altgrad.config.train_config import TrainConfig, make_config
from altgrad.events import Event
from altgrad.formats import NumberFormat, find_format
from altgrad.metrics import METRICS, SITES, SiteName
from altgrad.results import Run, Verdict, format_shifts, read_events
from altgrad.results.reading.curves import Curve, measured
from altgrad.text.foreign_text import as_code
from altgrad.text.number_text import number


class Finding(NamedTuple):
    """A measured value that a report names; `layer` and `site` are None for a value of the whole model."""

    metric: str
    value: float
    step: int
    layer: str | None = None
    site: SiteName | None = None

    def __str__(self) -> str:
        where = f" at the {self.site} of {as_code(self.layer)}" if self.layer is not None else ""
        return f"{METRICS[self.metric].label.lower()} {number(self.value)}{where}, step {self.step}"


@dataclass(frozen=True)
class Evidence:
    """A collapsed run and its tables.  `steps` has all rows; the methods use only those up to the verdict."""

    run: Run
    verdict: Verdict
    config: TrainConfig
    steps: pa.Table
    layers: pa.Table
    events: list[Event]

    @classmethod
    def of(cls, run: Run) -> Evidence:
        """Read a run's tables.  Raises ValueError for a run without a verdict."""
        verdict = run.verdict
        if verdict is None:
            raise ValueError(
                f"{run.folder}: run {run.name!r} is {run.status}; a failure report is for a run that collapsed "
                "(end.json with a verdict)"
            )
        known = {name: value for name, value in run.config.items() if name in TrainConfig.model_fields}
        steps = run.table("steps")
        return cls(
            run=run,
            verdict=verdict,
            config=make_config(known, source=str(run.folder / "run.json")),
            steps=steps,
            layers=run.table("layers"),
            events=read_events(run, steps),
        )

    def curve(self, metric: str) -> Curve:
        """The curve of a whole-model metric up to the verdict."""
        return measured(self._steps_to_verdict, metric)

    def layer_curves(self, metric: str, site: SiteName) -> dict[str, Curve]:
        """Layer -> curve of a metric at a site up to the verdict; layers where it was not measured are left out."""
        if metric not in self.layers.column_names:
            return {}
        near = pc.and_(pc.less_equal(self.layers["step"], self.verdict.step), pc.equal(self.layers["site"], site))
        rows = self.layers.filter(near).select(["step", "layer", metric]).drop_null()
        layers = np.asarray(rows["layer"].to_pylist(), dtype=object)
        curve = measured(rows, metric)
        names = dict.fromkeys(layers.tolist())
        return {name: Curve(curve.steps[layers == name], curve.values[layers == name]) for name in names}

    def worst(self, metric: str, site: SiteName | None = None, *, lowest: bool = False) -> Finding | None:
        """The largest (or `lowest`) finite value up to the verdict, over the layers at a site, or at all sites.

        If no layer was measured, and no site is given, the value of the whole model; None if there is none either.
        """
        sites = SITES if site is None else (site,)
        found = [
            Finding(metric, float(curve.values[at]), int(curve.steps[at]), layer, place)
            for place in sites
            for layer, curve in ((name, curve.finite()) for name, curve in self.layer_curves(metric, place).items())
            if len(curve.values)
            for at in [int(curve.values.argmin() if lowest else curve.values.argmax())]
        ]
        if not found and site is None and "step" in METRICS[metric].levels:
            curve = self.curve(metric).finite()
            if len(curve.values):
                at = int(curve.values.argmin() if lowest else curve.values.argmax())
                found = [Finding(metric, float(curve.values[at]), int(curve.steps[at]))]
        return min(found, key=lambda finding: finding.value if lowest else -finding.value, default=None)

    def last(self, metric: str) -> Finding | None:
        """The last value of a whole-model metric up to the verdict; None if it was not measured."""
        curve = self.curve(metric)
        return Finding(metric, float(curve.values[-1]), int(curve.steps[-1])) if len(curve.values) else None

    def absence(self, metric: str) -> str:
        """The reason why a metric has no values, for example `not measured (log_ulp: false)`."""
        known = METRICS[metric]
        if known.switch is not None and not getattr(self.config, known.switch):
            return f"not measured (`{known.switch}: false`)"
        if known.needs_baseline:
            return "not measured (no baseline curve was given)"
        interval = "eval_interval" if known.every == "eval_interval" else "diagnostic_interval"
        every = getattr(self.config, interval)
        at_intervals = known.every == interval or "layer" in known.levels
        if not at_intervals or every <= self.verdict.step:
            return "not measured"
        return f"not measured (`{interval}: {every}`, the verdict came at step {self.verdict.step})"

    def format_at(self, site: SiteName, layer: str | None = None) -> NumberFormat:
        """The format of a site at the verdict, in a layer or, without one, where no `layer_formats` glob matches.

        That is the format of the schedule's phase then.  Format shifts are applied; the new format keeps the overflow
        rule of the old one, as in the run.
        """
        gemm: GemmSite = "weight" if site == "update" else site  # the write-back has the weight's format
        fmt = self.recipe.format_at(layer or "", gemm)
        for shift in format_shifts(self.events):
            if shift.step <= self.verdict.step and shift.detail["from"] == fmt.name:
                with suppress(ValueError):  # a format that only another version knows
                    fmt = replace(find_format(shift.detail["to"]), overflow=fmt.overflow)
        return fmt

    @cached_property
    def phase(self) -> int:
        """The number of the schedule's phase at the verdict; 0 before the first one starts."""
        return phase_at(self.config.phase_starts, self.verdict.step)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe in the phase of the verdict, without format shifts."""
        return self.config.in_phase(self.phase)

    @cached_property
    def _steps_to_verdict(self) -> pa.Table:
        return self.steps.filter(pc.less_equal(self.steps["step"], self.verdict.step))

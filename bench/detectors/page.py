"""The results as markdown and JSON: the table of rules, what is planted and what became of it, and the forecast."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.detectors.forecast import Forecast
from bench.detectors.own_rules import stopped
from bench.detectors.scoring import Judged, Score, wilson
from bench.detectors.table import Field, RuleRow
from bench.record import machine

_BEGIN, _END = "<!-- detectors: begin -->", "<!-- detectors: end -->"
_OTHERS = 4  # rules of others in the short table
_HEAD = [
    "| rule | limit | recall | false stops | delay (steps) | compute saved |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
]


def write(field: Field, rows: Sequence[RuleRow], announced: Sequence[tuple[Forecast, Forecast]], out: Path) -> None:
    """detectors.md and detectors.json."""
    out.mkdir(parents=True, exist_ok=True)
    here, date = machine(), time.strftime("%Y-%m-%d")
    (out / "detectors.md").write_text("\n".join([*_page(field, rows, announced, here, date), ""]))
    record = {
        "command": field.command,
        "planned": field.planned,
        "date": date,
        "machine": here,
        "rules": [_row_record(row) for row in rows],
        "forecast": [_forecast_record(tune, test) for tune, test in announced],
        "runs": [_run_record(field, one, rows) for one in field.judged],
    }
    (out / "detectors.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def insert_short(readme: Path, rows: Sequence[RuleRow]) -> None:
    """Replace the short table between its marks in the README."""
    head, _, rest = readme.read_text().partition(_BEGIN)
    tail = rest.partition(_END)[2]
    readme.write_text("\n".join([head + _BEGIN, *short_table(rows), _END + tail]))


def short_table(rows: Sequence[RuleRow]) -> list[str]:
    """altgrad's rules with and without a baseline, and the published rules of others with the highest recall."""
    published = sorted((row for row in rows if row.group == "published"), key=lambda row: -row.test.recall)
    return [*_HEAD, *(_line(row) for row in (*rows[:2], *published[:_OTHERS]))]


def _page(
    field: Field, rows: Sequence[RuleRow], announced: Sequence[tuple[Forecast, Forecast]], here: Mapping[str, Any],
    date: str,
) -> list[str]:  # fmt: skip
    kinds = [one.outcome.kind for one in field.test]
    test = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("collapsed", "healthy", "undecided"))
    steps = field.judged[0].run.steps
    return [
        "# Which rule stops the runs that collapse, and no other?",
        "",
        f"`{field.command}`, {date}, {here['processor']}, torch {here['torch']}.",
        f"{_of_all(field)} of `micro` with one block and of a small regression, {steps} steps each, trained to the end without",
        f"stopping. Every third seed is the tune split; the tables are the test split, on which nothing was chosen: {test}.",
        "",
        "**Truth.** A run is judged by its held-out loss against its twin, the run of the same seed with nothing planted. It",
        "*collapsed* if at the end it is behind by at least 10 % of what the twin learned and does not catch up (a tenth of",
        "that in the last quarter of the run), or if its loss or most of its gradients are not finite. It is *healthy* if it is",
        "at most 5 % behind. Anything between is *undecided* and not scored. The held-out batches are never faulty, and the",
        "rule shares no threshold with a detector. A stop before a late fault begins is a false stop too.",
        "",
        "**Columns.** Recall: share of the collapsed runs that were stopped. False stops: share of the healthy runs, and of the",
        "runs before their fault begins, that were stopped. Both with Wilson's 95 % interval. Delay: median number of steps",
        "from the first faulty step to the stop. Compute saved: share of all steps of collapsed runs that was not trained.",
        "",
        "**Baseline.** altgrad's rules know the losses of the healthy run where a sweep would train one beside: for every format,",
        "and for every fault that begins at a later step, which hits one run alone. Another rate, other data or another schedule",
        "from the first step on would be the BF16 run's as well, and such a run has no baseline.",
        "",
        "## altgrad's rules",
        "",
        *_HEAD,
        *(_line(row) for row in rows if row.group == "altgrad"),
        "",
        *_wrong(field, rows[0]),
        "",
        "## Rules of others, as published",
        "",
        *_HEAD,
        *(_line(row) for row in rows if row.group == "published"),
        "",
        "## Rules of others, with the limit that is best on the tune split",
        "",
        "The limit with the highest recall at 2 % false stops at most, on the tune split.",
        "",
        *_HEAD,
        *(_line(row) for row in rows if row.group == "tuned"),
        "",
        "Sources: " + "; ".join(dict.fromkeys(f"{_plain(row.name)}: {row.source}" for row in rows if row.group != "altgrad")) + ".",
        "",
        "## What was planted, and what became of it",
        "",
        "Both splits. Lost: median share of the twin's progress that the runs lacked at the end.",
        "",
        "| scenario | collapsed | healthy | undecided | lost | stopped by altgrad | rules |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *_scenarios(field, rows[0]),
        "",
        "## Forecast",
        "",
        "How well each stored diagnostic announces a collapse before the verdict of the rules above (before the end of a run",
        "without one). AUC: the chance that a collapsed run looks worse than a healthy one, each by its worst value in that",
        "time. Lead: from the first alarm to the verdict. The reading (as it is, or divided by the median of its own earlier values) and its limit were chosen on the",
        "tune split, at 5 % false alarms there; the other columns are the test split.",
        "",
        "| diagnostic | reading | limit | AUC | announced | false alarms | median lead (steps) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_forecast_line(tune, test) for tune, test in announced),
    ]  # fmt: skip


def _plain(name: str) -> str:
    return name.removesuffix(", tuned")


def _of_all(field: Field) -> str:
    """`217 runs`, or how many of them were finished, and of which seeds."""
    runs, seeds = len(field.judged), sorted({one.run.plan.seed for one in field.judged})
    if runs == field.planned:
        return f"{runs} runs"
    return f"The first {runs} of its {field.planned} runs (seeds {', '.join(map(str, seeds))})"


def _line(row: RuleRow) -> str:
    found = row.test
    limit = "" if row.limit is None else f"{row.limit:.3g}"
    delay = "" if found.delay is None else f"{found.delay:.0f}"
    return (
        f"| {row.name} | {limit} | {_share(found.caught, found.collapsed)} | {_share(found.false, found.chances)} | "
        f"{delay} | {found.saved:.0%} |"
    )


def _share(hits: int, number: int) -> str:
    low, high = wilson(hits, number)
    return f"{hits} of {number}, {hits / number:.1%} [{low:.1%}, {high:.1%}]" if number else ""


def _scenarios(field: Field, ours: RuleRow) -> list[str]:
    lines = []
    for scenario in dict.fromkeys(one.run.plan.scenario for one in field.judged):
        runs = [one for one in field.judged if one.run.plan.scenario == scenario]
        kinds = [one.outcome.kind for one in runs]
        lost = sorted(one.outcome.lost for one in runs)[len(runs) // 2]
        found = [stopped(one.run, field.baseline(one.run)) for one in runs if ours.stops[one.name] is not None]
        rules = ", ".join(f"`{rule}`" for rule in sorted({rule for _, rule in (one for one in found if one)}))
        counts = " | ".join(str(kinds.count(kind)) for kind in ("collapsed", "healthy", "undecided"))
        shown = f"{lost:.1%}" if math.isfinite(lost) else "not finite"
        lines.append(f"| `{scenario}` | {counts} | {shown} | {len(found)} of {len(runs)} | {rules} |")
    return lines


def _wrong(field: Field, ours: RuleRow) -> list[str]:
    """Every run of the test split that was missed or stopped wrongly, with what it had lost of the twin's progress."""
    missed, wrongly = [], []
    for one in field.test:
        stop, said = ours.stops[one.name], f"`{one.name}` ({one.outcome.lost:.1%})"
        if stop is not None and (one.outcome.kind == "healthy" or stop < one.run.plan.onset):
            wrongly.append(f"`{one.name}` (step {stop}, {one.outcome.lost:.1%})")
        elif stop is None and one.outcome.kind == "collapsed":
            missed.append(said)
    return [
        f"Missed, with the progress that they lacked at the end: {', '.join(missed) or 'none'}.",
        "",
        f"Stopped wrongly: {', '.join(wrongly) or 'none'}.",
    ]


def _forecast_line(tune: Forecast, test: Forecast) -> str:
    signal = test.signal
    form = "" if signal.form == "value" else ", against its earlier median"
    lead = "" if test.lead is None else f"{test.lead:.0f}"
    limit = tune.limit if signal.bad == "high" else -tune.limit
    return (
        f"| `{signal.metric}` | {signal.bad}{form} | {limit:.3g} | {test.auc:.2f} | {_share(*test.alarms)} | "
        f"{_share(*test.false)} | {lead} |"
    )


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else repr(value)


def _score_record(found: Score) -> dict[str, Any]:
    return {name: _finite(value) if isinstance(value, float) else value for name, value in asdict(found).items()}


def _row_record(row: RuleRow) -> dict[str, Any]:
    return {
        "rule": row.name, "group": row.group, "source": row.source, "limit": row.limit,
        "tune": _score_record(row.tune), "test": _score_record(row.test),
    }  # fmt: skip


def _forecast_record(tune: Forecast, test: Forecast) -> dict[str, Any]:
    return {
        **asdict(test.signal), "limit": _finite(tune.limit),
        "tune": {"auc": tune.auc, "alarms": tune.alarms, "false": tune.false, "leads": tune.leads},
        "test": {"auc": test.auc, "alarms": test.alarms, "false": test.false, "leads": test.leads},
    }  # fmt: skip


def _run_record(field: Field, one: Judged, rows: Sequence[RuleRow]) -> dict[str, Any]:
    plan = one.run.plan
    return {
        "run": one.name, "split": "test" if plan.is_test else "tune", "onset": plan.onset,
        "outcome": one.outcome.kind, "lost": _finite(one.outcome.lost), "visible": one.outcome.visible,
        "stop": rows[0].stops[one.name],
    }  # fmt: skip

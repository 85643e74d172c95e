"""The section "Cause, tested": what the replays of a collapsed run showed, from its `explanation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad.explain import read_explanation
from altgrad.explain.record import worked_arms
from altgrad.metrics import METRICS
from altgrad.results import RecordError, Run
from altgrad.text.foreign_text import as_markdown
from altgrad.text.number_text import number, table

_TRIED = 3  # arms that are listed as tried and worked


def explanation_of(run: Run) -> dict[str, Any] | None:
    """The explanation of a run; None if there is none, or none that can be read."""
    try:
        return read_explanation(run.folder)
    except (RecordError, OSError):
        return None


def tested_cause(record: Mapping[str, Any]) -> str:
    """The conclusion, how the replays were made, and a table of all of them, as markdown."""
    found = record["conclusion"]
    parts = [f"**{as_markdown(found['sentence'])}** Confidence: {found['confidence']}."]
    how = f"Each replay trains steps {record['start'] + 1} to {record['until']} again with one thing changed."
    notes = [f"{note[0].upper()}{note[1:]}." for note in record["notes"] if note]
    unfinished = [] if record["finished"] else ["The explanation is not finished."]
    parts.append(" ".join([how, *map(as_markdown, notes), *unfinished]))
    if record["arms"]:
        parts.append(
            table(ARM_COLUMNS, ([as_markdown(cell) for cell in arm_cells(arm)] for arm in record["arms"]), "llrrrr")
        )
    return "\n\n".join(parts)


ARM_COLUMNS = ("Replay", "Result", METRICS["loss"].heading, "At step", "Unchanged", "BF16")


def arm_cells(arm: Mapping[str, Any]) -> list[str]:
    """One replay in words: what was changed, whether it collapsed, and the mean losses of ten steps up to one step."""
    result = {
        "prevented": f"no collapse until step {arm['steps']}",
        "collapsed": f"{arm['rule']}, step {arm['step']}",
        "failed": f"failed: {arm['error']}",
    }[arm["status"]]
    if arm["repeats"] is not None and arm["status"] == "collapsed":
        result += ", bit for bit as in the run" if arm["repeats"] else ", other numbers than in the run"
    losses = [number(arm[name]) for name in ("loss", "loss_step", "loss_control", "loss_baseline")]
    return [arm["label"], result, *losses]


def tried_and_worked(record: Mapping[str, Any]) -> list[str]:
    """Advice that was tried: the replays that did not collapse, the guilty set first, with their numbers."""
    guilty = record["conclusion"]["cells"]
    arms = worked_arms(dict(record))
    arms.sort(key=lambda arm: arm["cells"] != guilty or not guilty)  # stable
    shown = [arm for arm in arms if arm["kind"] != "complement"][:_TRIED]
    return [_tried(arm) for arm in shown]


def _tried(arm: Mapping[str, Any]) -> str:
    numbers = ""
    if arm["loss"] is not None:
        others = [("unchanged", arm["loss_control"]), ("BF16", arm["loss_baseline"])]
        against = ", ".join(f"{number(loss)} {whose}" for whose, loss in others if loss is not None)
        numbers = f", loss {number(arm['loss'])} at step {arm['loss_step']}" + (f" ({against})" if against else "")
    return f"Tried, and it worked: {as_markdown(arm['label'])}: no collapse until step {arm['steps']}{numbers}"

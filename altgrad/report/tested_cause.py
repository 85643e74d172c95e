"""The section "Cause, tested": what the replays of a collapsed run showed, from its `explanation.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from altgrad.compare.statistics import interval
from altgrad.explain import read_explanation
from altgrad.explain.arm import ALL, HISTORY, MASTER, RATE, SCALING
from altgrad.explain.harm import MOST_LEFT
from altgrad.explain.record import worked_arms
from altgrad.metrics import METRICS
from altgrad.results import RecordError, Run
from altgrad.text.foreign_text import as_code, as_markdown
from altgrad.text.number_text import number, table

_TRIED = 3  # arms that are listed as tried and worked
# config fields that choose another format, now or when the run is in trouble
_OF_FORMATS = {"format", "weight_format", "activation_format", "gradient_format", "enable_emergency_shift"}
_LEAST_HARM = 0.2  # of the loss, where there is no BF16 run to measure it by
_ARMS_OF_RULE = {"weights_at_rest": (MASTER,), "setting": (SCALING, HISTORY), "rate": (RATE,)}


class Tried(NamedTuple):
    """A replay that worked, as advice: the sentence, and the config fields that it set, if they are few."""

    sentence: str
    changes: Mapping[str, Any]

    def __str__(self) -> str:
        return self.sentence


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
    over_replays = replayed_losses(record)
    if over_replays is not None:
        parts.append(over_replays)
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
    if (left := arm["harm_left"]) is not None and left > MOST_LEFT:
        result += f", but {left:.0%} of the harm is left"
    losses = [number(arm[name]) for name in ("loss", "loss_step", "loss_control", "loss_baseline")]
    return [arm["label"], result, *losses]


def replayed_losses(record: Mapping[str, Any]) -> str | None:
    """How much healing what is guilty lowers the loss, over its replays, each against its own control, with interval.

    None with fewer than two replays whose two losses are finite and of the same step.
    """
    guilty, arms = record["conclusion"]["cells"], record["arms"]
    known = [arm for arm in arms if arm["loss"] is not None and math.isfinite(arm["loss"])]
    healed = {arm["replay"]: arm for arm in known if arm["kind"] == "heal" and guilty and arm["cells"] == guilty}
    controls = {arm["replay"]: arm for arm in known if arm["kind"] == "control" or (arm["replay"] and not arm["cells"])}
    pairs = [(arm, controls[place]) for place, arm in healed.items() if place in controls]
    lower = [control["loss"] - arm["loss"] for arm, control in pairs if control["loss_step"] == arm["loss_step"]]
    middle, low, high = interval(lower)
    if middle is None or low is None or high is None:
        return None
    return (
        f"Healed, the loss is lower by {number(middle)} ({number(low)} to {number(high)}, 95 % t interval over "
        f"{len(lower)} replays, on the run's own and on other batches, each against the unchanged one)."
    )


def tried_and_worked(record: Mapping[str, Any]) -> list[Tried]:
    """Advice that was tried: the replays that did not collapse, with their numbers.

    What the conclusion names comes first, all operands in BF16 last: that gives up the format.
    """
    found = record["conclusion"]
    arms = [arm for arm in worked_arms(dict(record)) if arm["kind"] != "complement"]
    named = _ARMS_OF_RULE.get(found["rule"], ())
    guilty = [arm for arm in arms if arm["name"] in named or (found["cells"] and arm["cells"] == found["cells"])]
    rest = [arm for arm in arms if arm not in guilty]
    arms = [*guilty, *sorted(rest, key=lambda arm: arm["name"] == ALL)]
    return [Tried(_tried(arm), _fields(arm)) for arm in arms[:_TRIED]]


def tried_in_vain(record: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether a replay with these config changes, on the run's own batches, collapsed like the run, and no less.

    If one with all operands in BF16 did, no other format would have prevented it either.  A replay that begins with
    what the run has lost by then may be judged although its loss is far better: that is not in vain.
    """
    in_vain = [
        arm
        for arm in record["arms"]
        if arm["status"] == "collapsed" and not arm["replay"] and arm["kind"] != "control" and not _eased(arm)
    ]
    if any(arm["name"] == ALL for arm in in_vain) and changes.keys() <= _OF_FORMATS:
        return True
    return any(all(arm["changes"].get(name) == value for name, value in changes.items()) for arm in in_vain)


def _eased(arm: Mapping[str, Any]) -> bool:
    """Whether an arm's loss lies below the unchanged one by a quarter of what that lies above BF16's."""
    loss, control, baseline = arm["loss"], arm["loss_control"], arm["loss_baseline"]
    if loss is None or control is None:
        return False
    harm = _LEAST_HARM * abs(control) if baseline is None else max(control - baseline, 0.0)
    return bool(control - loss > MOST_LEFT * harm)  # false where one is NaN


def _fields(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields that a replay set, if they are plain values; none where operands were chosen layer by layer."""
    changes: dict[str, Any] = arm["changes"]
    return changes if all(isinstance(value, bool | int | float | str) for value in changes.values()) else {}


def _tried(arm: Mapping[str, Any]) -> str:
    fields = ", ".join(
        as_code(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
        for name, value in _fields(arm).items()
    )
    label = as_markdown(arm["label"]) + (f" ({fields})" if fields else "")
    numbers = ""
    if arm["loss"] is not None:
        others = [("unchanged", arm["loss_control"]), ("BF16", arm["loss_baseline"])]
        against = ", ".join(f"{number(loss)} {whose}" for whose, loss in others if loss is not None)
        numbers = f", loss {number(arm['loss'])} at step {arm['loss_step']}" + (f" ({against})" if against else "")
    return f"Tried, and it worked: {label}: no collapse until step {arm['steps']}{numbers}"

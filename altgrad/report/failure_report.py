"""The failure report of one collapsed run, in the order of a reader's questions.

It has the verdict, the loss curve, the signals that moved first, the cause if replays have tested it, and the advice;
then the tables by layer, the last diagnostics, the events and the config.  It is built from the run's folder alone, at
any time and on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from altgrad.config.phases import phases_text
from altgrad.config.train_config import LITTLE_COVERAGE
from altgrad.events import Event, kind_of
from altgrad.metrics import METRICS, RESCUE_ACTS, columns
from altgrad.report.advising.advice import advise, measure_more
from altgrad.report.evidence import Evidence
from altgrad.report.layer_tables import gradient_sparsity, rates_by_layer, zero_update_regions
from altgrad.report.signals import Departure, what_moved
from altgrad.report.tested_cause import explanation_of, tested_cause, tried_and_worked, tried_in_vain
from altgrad.report.text_plot import plot
from altgrad.results import Run, format_shifts, read_run
from altgrad.results.reading.curves import measured
from altgrad.show.glossary import RULES
from altgrad.storage.folder import Folder
from altgrad.text.foreign_text import as_code, as_code_block, as_markdown
from altgrad.text.number_text import ABSENT, duration, number, shares_text, table
from altgrad.text.yaml_text import to_yaml

_TREND = 5
_LISTED = 3  # events of one kind that are listed one by one


def write_failure_report(folder: Folder) -> str:
    """Write `failure_report.md` into a run's folder from the files in it, and return its text.

    Raises ValueError if the run did not collapse, FileNotFoundError if there is no run.
    """
    text = failure_report(read_run(folder))
    folder.write_bytes("failure_report.md", text.encode())
    return text


def failure_report(run: Run) -> str:
    """The failure report of a collapsed run as markdown.  Raises ValueError for a run without a verdict."""
    evidence, explanation = Evidence.of(run), explanation_of(run)
    tested = {} if explanation is None else {"Cause, tested": tested_cause(explanation)}
    sections = {
        "Summary": _summary(evidence),
        "Loss": _loss(evidence),
        "What moved first": _moved(evidence),
        **tested,
        "What to try": _advice(evidence, explanation),
        "Overflow by layer": rates_by_layer(evidence, "overflow_rate"),
        "Underflow by layer": rates_by_layer(evidence, "underflow_rate"),
        "Stall by layer": rates_by_layer(evidence, "stall_rate"),
        "Zero-update regions": zero_update_regions(evidence),
        METRICS["gradient_sparsity"].label: gradient_sparsity(evidence),
        f"Last {_TREND} diagnostic measurements": _trend(evidence),
        "Events": _events(evidence),
        "Config": as_code_block(to_yaml(run.config), "yaml"),
    }
    verdict = evidence.verdict
    said = as_markdown(verdict.sentence())
    sentences = [f"**{said}.**", RULES.get(verdict.rule, ""), as_markdown(_sentence(verdict.detail))]
    lead = " ".join(sentence for sentence in sentences if sentence)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# Failure report: {as_markdown(run.name)}\n\n{lead}\n\n{body}\n"


def stored_report(run: Run) -> str:
    """The report in the run's folder, or a new one if there is none.  Raises ValueError if the run has no verdict."""
    if run.folder.has("failure_report.md"):
        return run.folder.read_bytes("failure_report.md").decode(errors="replace")
    return failure_report(run)


def _sentence(text: str, end: str = ".") -> str:
    return f"{text[0].upper()}{text[1:].rstrip(end)}{end}" if text else ""


def _summary(evidence: Evidence) -> str:
    run, config, verdict = evidence.run, evidence.config, evidence.verdict
    steps = evidence.steps["step"].to_pylist()
    elapsed = evidence.curve("elapsed_seconds").values
    rows = [
        ["Format as configured", _configured(evidence)],
        ["Format as shifted", _shifted(evidence)],
        [
            "Weights at rest",
            "FP32 master" if config.master_weights else f"on the grid, {config.update_rounding} update",
        ],
        ["Rounded share of the GEMM FLOPs", _rounded(run)],
        ["Scaling", f"{config.scaling}" + ("" if config.scaling == "none" else f", per {config.scale_granularity}")],
        *([["Branched from", as_markdown(run.branch_words)]] if run.branch_words else []),
        *([["Started from", as_markdown(run.start_words)]] if run.start_words else []),
        ["Intervention", as_markdown(str(run.info.get("intervention") or "none"))],
        ["Rule", f"{as_code(verdict.rule)}, step {verdict.step}"],
        [as_code(verdict.metric), f"{number(verdict.value)} (limit {number(verdict.limit)})"],
        [METRICS["loss"].label, _final_and_best(evidence, "loss")],
        [METRICS["validation_loss"].label, _final_and_best(evidence, "validation_loss")],
        ["Steps", f"{steps[-1] if steps else 0} of {config.max_steps}{_beyond(steps, verdict.step)}"],
        ["Duration", duration(float(elapsed[-1])) if len(elapsed) else ABSENT],
        ["Seed, learning rate", f"{config.seed}, {config.learning_rate:g}"],
    ]
    return table(["Run", as_code(run.name)], rows, "ll")


def _beyond(steps: Sequence[int], verdict: int) -> str:
    """That the numbers of the summary end before the run did, where another process judged it after that step."""
    return f"; losses and duration are those up to the verdict, step {verdict}" if steps and steps[-1] > verdict else ""


def _rounded(run: Run) -> str:
    share = run.rounded_share
    if share is None:
        return "not measured"
    formats = run.rounded_formats
    parts = f" ({as_markdown(shares_text(formats))})" if len(formats) > 1 else ""
    return f"{share:.1%}{parts}" + (": most of the model is computed as in FP32" if share < LITTLE_COVERAGE else "")


def _configured(evidence: Evidence) -> str:
    config = evidence.config
    sites = {"weight": config.weight_format, "activation": config.activation_format, "gradient": config.gradient_format}
    own = [] if config.recipe is None else [f"recipe {as_code(config.recipe)}"]
    own += [f"{site} {name}" for site, name in sites.items() if name is not None and name != config.format]
    own += [f"{as_code(glob)} {as_markdown(name)}" for glob, name in config.layer_formats.items()]
    own += [as_markdown(phases_text(config.phases))] if config.phases else []
    return config.format + (f" ({', '.join(own)})" if own else "")


def _shifted(evidence: Evidence) -> str:
    shifts = format_shifts(evidence.events)
    said = [
        f"{shift.detail['from']} → {shift.detail['to']} at step {shift.step}"
        + (f" ({shift.detail['trigger']})" if shift.detail.get("trigger") else "")
        for shift in shifts
    ]
    return as_markdown("; ".join(said)) or "not shifted"


def _final_and_best(evidence: Evidence, metric: str) -> str:
    curve = evidence.curve(metric)
    if not len(curve.values):
        return "not measured"
    finite = curve.finite()
    final = f"final {number(curve.values[-1])} (step {curve.steps[-1]})"
    if not len(finite.values):
        return f"{final}, never finite"
    at = int(finite.values.argmin())
    return f"{final}, best {number(finite.values[at])} (step {finite.steps[at]})"


def _loss(evidence: Evidence) -> str:
    whole = measured(evidence.steps, "loss")
    marks = {evidence.verdict.step: f"verdict {evidence.verdict.rule}"}
    marks |= {shift.step: f"shift to {shift.detail['to']}" for shift in format_shifts(evidence.events)}
    marks |= {event.step: f"phase {event.detail.get('phase')}" for event in evidence.events if event.kind == "phase"}
    return as_code_block(plot(whole, marks, label=METRICS["loss"].axis_in(evidence.run.loss_unit)), "text")


def _moved(evidence: Evidence) -> str:
    signals = what_moved(((name, evidence.curve(name)) for name in columns("step")), evidence.run.loss_unit)
    if not (signals.moved or signals.still or signals.sparse):
        return "No signal was measured before the verdict."
    parts = [
        "Each signal is compared with its own early baseline (median ± robust scale), a loss with its best value so "
        "far. Signals are listed in the order of the steps at which they left their baseline."
    ]
    if signals.moved:
        head = ["", "Signal", "Left at step", "How", "Value there", "At the verdict", "Baseline", "from steps"]
        unit = evidence.run.loss_unit
        rows = [[str(place), *_departure_cells(moved, unit)] for place, moved in enumerate(signals.moved, start=1)]
        parts.append(table(head, rows, "rlrlrrrl"))
    else:
        parts.append("No signal left its baseline before the verdict.")
    for title, names in (("Stayed at their baseline", signals.still), ("Too few measurements", signals.sparse)):
        if names:
            parts.append(f"{title}: {', '.join(f'`{name}`' for name in names)}.")
    return "\n\n".join(parts)


def _departure_cells(moved: Departure, loss_unit: str) -> list[str]:
    early = moved.n > 0 and moved.how != "out of bounds from the start"  # otherwise it had no normal level
    return [
        METRICS[moved.metric].axis_in(loss_unit),
        str(moved.step),
        moved.how,
        number(moved.value),
        number(moved.final),
        f"{number(moved.baseline)} ± {number(moved.scale, 2)}" if early else ABSENT,
        f"{moved.first}–{moved.last} (n = {moved.n})" if early else ABSENT,
    ]


def _advice(evidence: Evidence, explanation: Mapping[str, Any] | None) -> str:
    """explanation: what was tried; what worked comes first, and advice that was tried in vain is named below."""
    worked = [] if explanation is None else tried_and_worked(explanation)
    untried = [advice for advice in advise(evidence) if all(advice.changes != one.changes for one in worked)]
    vain = [one for one in untried if explanation is not None and tried_in_vain(explanation, one.changes)]
    found, more = [*worked, *(one for one in untried if one not in vain)], measure_more(evidence)
    if found:
        text = "\n".join(f"{place}. {advice}" for place, advice in enumerate(found, start=1))
    else:
        text = "Nothing that was measured points to a cause that a config change would remove."
    if vain:
        text += f"\n\nTried, and it did not help: {', '.join(one.what for one in vain)}."
    if more:
        text += "\n\nTo see more next time:\n\n" + "\n".join(f"- {advice}" for advice in more)
    return text


def _trend(evidence: Evidence) -> str:
    names = columns("step")
    diagnostics = [name for name in names if METRICS[name].every == "diagnostic_interval"]
    curves = {name: evidence.curve(name) for name in names}
    steps = sorted({int(step) for name in diagnostics for step in curves[name].steps})[-_TREND:]
    absent: dict[str, list[str]] = {}
    rows = []
    for name, curve in curves.items():
        if name in ("tokens", "elapsed_seconds", RESCUE_ACTS):  # acts are among the events
            continue
        values = dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
        if any(step in values for step in steps):
            rows.append([METRICS[name].axis_in(evidence.run.loss_unit), *(number(values.get(step)) for step in steps)])
        elif not values:
            absent.setdefault(evidence.absence(name), []).append(f"`{name}`")
    parts = (
        [table(["Metric", *(f"step {step}" for step in steps)], rows)]
        if steps
        else ["No diagnostics before the verdict."]
    )
    parts += [f"{_sentence(reason, ':')} {', '.join(metrics)}." for reason, metrics in absent.items()]
    return "\n\n".join(parts)


def _events(evidence: Evidence) -> str:
    if not evidence.events:
        return "None."
    kinds: dict[str, list[Event]] = {}
    for event in evidence.events:
        kinds.setdefault(event.kind, []).append(event)
    rows = []
    for kind, events in kinds.items():
        shown = events if len(events) <= _LISTED else [events[0], events[-1]]
        for place, event in enumerate(shown):
            which = "" if len(events) <= _LISTED else ("first" if place == 0 else "last")
            rows.append(
                [
                    kind_of(kind).label if place == 0 else "",
                    str(len(events)) if place == 0 else "",
                    which,
                    str(event.step),
                    _detail(event),
                ]
            )
    return table(["Event", "Times", "", "Step", "Detail"], rows, "lrlrl")


def _detail(event: Event) -> str:
    return ", ".join(f"{as_markdown(name)} {_plain(value)}" for name, value in event.detail.items())


def _plain(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return as_markdown(value if isinstance(value, str) else json.dumps(value))

"""The board of runs: what each one does now, how it ended and why, its gap, and its loss in front of that of BF16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from altgrad.compare import Row, paired_gap
from altgrad.html.board.cells import board, facts_of, figure, head, named, was_cut_short
from altgrad.html.board.drawings import Bars, Sparks, as_image, one_scale
from altgrad.html.markup import Html, element, join
from altgrad.metrics import METRICS
from altgrad.results.annotations import Annotation
from altgrad.show.drawn_curves import Line
from altgrad.show.palette import ALARM, NEUTRAL
from altgrad.show.sweep_status import seconds_left
from altgrad.text.number_text import ABSENT, duration

_HEADS = (("Run", "run"), ("Status", None), ("Gap to BF16", "gap"), (METRICS["loss"].label, "loss"))


@dataclass(frozen=True)
class BoardRun:
    """A row of the board.  `link`: where its name leads.  `is_stopping`: somebody asked it to stop."""

    row: Row
    link: str | None = None
    annotation: Annotation = field(default_factory=Annotation)
    is_stopping: bool = False


def run_board(trials: Sequence[BoardRun], lines: Mapping[str, Line]) -> Html:
    """A row per run, in the given order.  `lines`: run -> its loss curve, also of the BF16 runs behind them."""
    rows = [trial.row for trial in trials]
    groups, gaps = [[row] for row in rows], [paired_gap([row]) for row in rows]
    bars, sparks = Bars.by_task(groups, gaps), Sparks.by_task(rows, lines, to_end=True)
    body = []
    for trial, gap in zip(trials, gaps, strict=True):
        row = trial.row
        own = sparks.get(row.task)
        drawn = None if own is None else own.drawn([row], lines, [row.baseline] if row.baseline else [])
        inside = (
            _status(trial),
            join([as_image(bars[row.task].drawn(row, gap)), figure([row], gap)]),
            as_image(drawn) or ABSENT,
        )
        heads = (title for title, _ in _HEADS[1:])
        cells = (element("td", cell, data_head=title) for cell, title in zip(inside, heads, strict=True))
        name = named(row.run, row, trial.link, _notes(trial))
        body.append(element("tr", element("th", name, scope="row"), *cells))
    said = _note(bars, sparks, rows)
    return join([board([head(*one) for one in _HEADS], body, "Runs", "runs"), element("p", said, class_="board-note")])


def _note(bars: Mapping[str, Bars], sparks: Mapping[str, Sparks], rows: Sequence[Row]) -> str:
    """What the drawings show; nothing about those that no row has."""
    said, used = [], [own for own in bars.values() if own.is_used]
    if used:
        band = "; in grey the margin around 0" if any(own.margin is not None for own in used) else ""
        said.append(f"Gaps on {one_scale(used, rows)}{band}.")
    if sparks:
        scale = "one scale" if len(sparks) == 1 else "a scale for each task"
        behind = ", with the BF16 run of the same seed in grey" if any(row.baseline for row in rows) else ""
        said.append(f"Loss: training loss on {scale}{behind}; a cross marks where a run died.")
    return " ".join(said)


def _notes(trial: BoardRun) -> list[str | Html]:
    """The small lines below a run's name: its group, what people noted, coverage and branch."""
    row, annotation = trial.row, trial.annotation
    starred = [element("span", "★ ", title="starred")] if annotation.star else []
    tags = [element("span", tag, class_="tag") for tag in annotation.tags]
    said: list[str | Html] = [row.group_label, *facts_of([row])]
    said += [join([*starred, *tags])] if starred or tags else []
    said += [element("span", annotation.note, class_="noted")] if annotation.note else []
    return said


def _status(trial: BoardRun) -> Html:
    row = trial.row
    sign, colour = ("✕", ALARM) if was_cut_short(row) else ("○" if row.status == "running" else "●", NEUTRAL)
    word = "collapsed" if row.collapsed else "stopping" if trial.is_stopping else str(row.status)
    first = join([element("span", sign, style=f"color:{colour}"), f" {word}"])
    if row.status != "running" or row.collapsed:
        reason = [element("div", row.reason, class_="small")] if row.reason else []
        return join([first, *reason])
    share = min(row.step / row.max_steps, 1.0) if row.max_steps else 0.0
    bar = element("div", element("div", style=f"width:{share:.1%}"), class_="progress")
    left = seconds_left(row.status, row.own_steps, row.max_steps - row.step, row.seconds)
    eta = "time left unknown" if left is None else f"{duration(round(left))} left"
    return join([first, bar, element("div", f"step {row.step:,} of {row.max_steps:,}, {eta}", class_="small")])

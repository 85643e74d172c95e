"""Figures that compare groups of runs: rescue matrix, loss gap against bits, loss against learning rate, survival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from altgrad.compare import RescueCell, Row, by_group, by_task, loss_unit, matrix_axes, paired_gap, survival
from altgrad.compare.parity.verdict import ENOUGH_SEEDS
from altgrad.compare.rescue import CellKey
from altgrad.formats import find_format
from altgrad.metrics import METRICS
from altgrad.show.palette import NEUTRAL, curve_dash, format_colour, share_colour
from altgrad.text.foreign_text import as_label
from dashboard.figures.curve_figures import in_lines


def cell_text(cell: RescueCell) -> str:
    """The lines of a cell of the rescue matrix as a Plotly text."""
    first, *others = cell.lines
    return "<br>".join([f"<b>{as_label(first)}</b>", *map(as_label, others)])


def matrix_figure(cells: Mapping[CellKey, RescueCell]) -> go.Figure:
    """The rescue matrix.  Its cells are bars, which can be clicked, and hatched if fewer than three runs ended."""
    rows, interventions = matrix_axes(cells)
    places = [(key, rows.index(key[:2]), interventions.index(key[2])) for key in cells]
    bars = {
        "type": "bar",
        "x": [column for _, _, column in places],
        "y": [0.94] * len(places),
        "base": [row - 0.47 for _, row, _ in places],
        "width": 0.96,
        "text": [cell_text(cells[key]) for key, _, _ in places],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "insidetextfont": {"color": "#ffffff"},
        "textangle": 0,
        "hoverinfo": "text",
        "hovertext": [_hover(key, cells[key]) for key, _, _ in places],
        "customdata": ["\t".join(key) for key, _, _ in places],
        "marker": {
            "color": [share_colour(cells[key].share) for key, _, _ in places],
            "line": {"width": 0},
            "pattern": {
                "shape": ["/" if cells[key].ended < ENOUGH_SEEDS else "" for key, _, _ in places],
                "fgcolor": "rgba(0, 0, 0, 0.28)",
                "fillmode": "overlay",
                "size": 9,
            },
        },
    }
    layout = {
        "height": 110 + 62 * len(rows),
        "margin": {"l": 10, "r": 10, "t": 50, "b": 10},
        "xaxis": {
            "tickvals": list(range(len(interventions))),
            "ticktext": [as_label(name) for name in interventions],
            "title": {"text": "Intervention"},
            "side": "top",
            "showgrid": False,
            "automargin": True,
        },
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [in_lines(f"{fmt} {treatment}".strip()) for fmt, treatment in rows],
            "title": {"text": "Format"},
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        "showlegend": False,
    }  # fmt: skip
    return go.Figure({"data": [bars], "layout": layout})


def _hover(key: CellKey, cell: RescueCell) -> str:
    fmt, treatment, intervention = (as_label(part) for part in key)
    few = f"<br>fewer than {ENOUGH_SEEDS} ended runs: no claim" if cell.ended < ENOUGH_SEEDS else ""
    return f"{fmt} {treatment} · {intervention}<br>{cell.survived} of {cell.ended} survived{few}<br>{cell.gap.sentence}"


def pareto(rows: Sequence[Row]) -> list[tuple[Row, int, float, bool]]:
    """For each group with a gap: (row, bits, mean gap, whether no group with at most as many bits has a smaller gap).

    The last is false for a group with a collapse, and such a group is ignored when others are judged.  The baseline has
    the gap 0.  Each task has a front of its own.
    """
    return [point for own in by_task(rows).values() for point in _front(own)]


def _front(rows: Sequence[Row]) -> list[tuple[Row, int, float, bool]]:
    found: list[tuple[Row, int, float, bool]] = []
    for members in by_group(rows).values():
        gap, bits = paired_gap(members), _bits(members[0].format)
        mean = 0.0 if any(row.is_baseline for row in members) else gap.mean
        if mean is not None and bits is not None:
            found.append((members[0], bits, mean, gap.is_whole))
    whole = [(bits, gap) for _, bits, gap, is_whole in found if is_whole]
    return [
        (row, bits, gap, is_whole and not any(b <= bits and g <= gap and (b, g) != (bits, gap) for b, g in whole))
        for row, bits, gap, is_whole in found
    ]


def _bits(name: str) -> int | None:
    try:
        return find_format(name).bits
    except ValueError:
        return None


def _with_unit(label: str, rows: Sequence[Row]) -> str:
    unit = loss_unit(rows)
    return f"{label} ({unit})" if unit else label


def pareto_figure(rows: Sequence[Row]) -> go.Figure:
    """Mean gap to the baseline against bits; the groups on the Pareto front are filled and named."""
    points = pareto(rows)
    groups = by_group(rows)
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [bits],
            "y": [gap],
            "text": [in_lines(row.group_label) if best else ""],
            "textposition": "middle right",
            "name": in_lines(row.group_label),
            "marker": {"size": 11, "color": format_colour(row.format), "symbol": "circle" if best else "circle-open"},
            "customdata": [_hover_of_group(row, groups[row.group])],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        for row, bits, gap, best in points
    ]
    layout = _layout("Bits per value", _with_unit("Gap to BF16", rows)) | {"height": 380}
    bits = [point[1] for point in points] or [8]
    layout["xaxis"] |= {"range": [min(bits) - 1, max(bits) + 4], "dtick": 2}
    return go.Figure({"data": traces, "layout": layout})


def _hover_of_group(row: Row, members: Sequence[Row]) -> str:
    gap = paired_gap(members)
    what = "baseline" if any(member.is_baseline for member in members) else gap.figure
    return as_label(f"{row.group_label}, learning rate {row.learning_rate:.3g}") + f"<br>{what}<br>{gap.count}"


def learning_rate_figure(rows: Sequence[Row]) -> go.Figure:
    """Last validation loss against learning rate: a mark per run, a line per set of runs that differ in rate and seed.

    A line connects the means at the rates at which all runs completed, so that its losses are of one step.  A run that
    ended early is a cross, a running one a ring.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.label_at_any_rate, []).append(row)
    traces: list[dict[str, Any]] = []
    for name, all_members in sorted(lines.items()):
        by_rate: dict[float, list[Row]] = {}
        for row in all_members:
            by_rate.setdefault(row.learning_rate, []).append(row)
        members = [row for row in all_members if _has_loss(row)]
        if not members:
            continue
        whole = [rate for rate, own in by_rate.items() if all(_has_loss(row) and _mark(row) == "circle" for row in own)]
        rates = sorted(whole)
        means = [np.mean([row.validation_loss or 0.0 for row in by_rate[rate]]) for rate in rates]
        colour = format_colour(members[0].format)
        dash = curve_dash(members[0].format, members[0].intervention)
        traces.append(_trace("lines", rates, means, name, {"color": colour, "dash": dash}))
        dots = _trace("markers", [r.learning_rate for r in members], [r.validation_loss for r in members], name, None)
        marker = {"color": colour, "size": 6, "symbol": [_mark(row) for row in members]}
        said = [as_label(f"{row.run}: {row.status}, step {row.validation_step}") for row in members]
        traces.append(dots | {"marker": marker, "showlegend": False, "text": said})
    layout = _layout(METRICS["learning_rate"].label, _with_unit(METRICS["validation_loss"].label, rows)) | {
        "height": 380
    }
    rates = sorted({row.learning_rate for row in rows if _has_loss(row)})
    layout["xaxis"] |= {"type": "log", "tickvals": rates, "ticktext": [f"{rate:.3g}" for rate in rates]}
    return go.Figure({"data": traces, "layout": layout})


def _has_loss(row: Row) -> bool:
    return row.validation_loss is not None and bool(np.isfinite(row.validation_loss))


def _mark(row: Row) -> str:
    return "x" if not row.alive else "circle" if row.status == "completed" else "circle-open"


def survival_figure(rows: Sequence[Row]) -> go.Figure:
    """Kaplan-Meier estimate of the share of runs alive by step, per group of seeds; ticks mark censored runs."""
    traces: list[dict[str, Any]] = []
    for name, members in _by_label(rows):
        curve = survival(members)
        if len(curve.steps) < 2:  # no collapse: a line at 1 that others would hide
            continue
        colour = format_colour(members[0].format)
        last, collapsed = max(row.step for row in members), sum(row.collapsed for row in members)
        steps, alive = np.append(curve.steps, last), np.append(curve.alive, curve.alive[-1])
        stroke = {"color": colour, "dash": curve_dash(members[0].format, members[0].intervention), "shape": "hv"}
        traces.append(_trace("lines", steps, alive, f"{name} ({collapsed} of {len(members)} collapsed)", stroke))
        at = np.searchsorted(curve.steps, curve.censored, side="right") - 1
        ticks = _trace("markers", curve.censored, curve.alive[at], name, None)
        traces.append(ticks | {"marker": {"symbol": "line-ns-open", "size": 9, "color": colour}, "showlegend": False})
    layout = _layout("Step", "Runs not collapsed") | {"height": 380}
    layout["yaxis"] |= {"range": [-0.03, 1.05], "tickformat": ".0%"}
    return go.Figure({"data": traces, "layout": layout})


def _by_label(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    named = [(members[0].group_label, members) for members in by_group(rows).values()]
    return sorted(named, key=lambda group: group[0])


def _trace(mode: str, x: Any, y: Any, name: str, stroke: dict[str, Any] | None) -> dict[str, Any]:
    trace = {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), "name": in_lines(name), "legendgroup": name}
    return trace | ({"line": stroke} if stroke else {})


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "margin": {"l": 10, "r": 10, "t": 20, "b": 10},
        "xaxis": {"title": {"text": x}, "automargin": True, "zerolinecolor": NEUTRAL},
        "yaxis": {"title": {"text": y}, "automargin": True},
    }

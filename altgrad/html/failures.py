"""The section of failures: a table of the collapsed runs, then the loss curve and failure report of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from altgrad.compare import Row
from altgrad.events import kind_of
from altgrad.html.drawing.charts import Curves, alone, legend
from altgrad.html.markup import Html, element, join, table
from altgrad.html.prose import prose
from altgrad.html.sweep_contents import Contents, HeldRun
from altgrad.report import stored_report
from altgrad.show.drawn_curves import describe

_REPORT_LEVEL = 4  # of the report's top heading, below the page, this section and the run


def collapsed_rows(rows: Sequence[Row]) -> list[Row]:
    """Collapsed runs by rule, then by step."""
    found = [row for row in rows if row.collapse_step is not None]
    return sorted(found, key=lambda row: (row.collapse_rule or "", row.collapse_step or 0))


def links_of(rows: Sequence[Row]) -> dict[str, str]:
    """Run name -> link to its failure report on the page."""
    return {row.run: f"#failure-{place}" for place, row in enumerate(collapsed_rows(rows))}


def failures_section(contents: Contents, curves: Curves | None) -> Html:
    """A table of the collapsed runs by rule, and the failure report of each."""
    collapsed, links = collapsed_rows(contents.rows), links_of(contents.rows)
    parts = [_without_verdict(contents.rows)]
    if not collapsed:
        return join([*parts, element("p", "No run of this sweep has collapsed.")])
    counts = Counter((row.collapse_rule or "").replace("_", " ") for row in collapsed)
    parts.append(element("p", ", ".join(f"{n} {rule}" for rule, n in counts.items()) + "."))
    body = [
        [
            element("a", row.run, href=links[row.run]),
            (row.collapse_rule or "").replace("_", " "),
            row.group_label,
            str(row.seed),
            f"{row.collapse_step} of {row.max_steps}",
            row.reason or "",
        ]
        for row in collapsed
    ]
    head = ["Run", "Rule", "Group", "Seed", "Step", "Reason"]
    parts.append(table(head, body, "Collapsed runs by rule", "lllrrl"))
    box = element("input", type="checkbox", id="print-reports")
    parts.append(element("p", element("label", box, " Print the reports below, too"), class_="of-print"))
    parts += [_failure(contents.runs[row.run], row, links[row.run], curves) for row in collapsed]
    return join(parts)


def _without_verdict(rows: Sequence[Row]) -> Html:
    others = [row for row in rows if row.status in ("failed", "killed") and row.collapse_step is None]
    if not others:
        return Html()
    named = ", ".join(f"{row.run} ({row.status} at step {row.step})" for row in others)
    return element("p", f"Ended without a verdict: {named}.", class_="warning")


def _failure(run: HeldRun, row: Row, link: str, curves: Curves | None) -> Html:
    """A run's failure as a collapsed `<details>` element; following a link to its content opens it."""
    summary = element("summary", element("h3", row.run), " ", element("span", row.reason or "", class_="reason"))
    figure = None
    line = next((one for one in curves.lines if one.row.run == row.run), None) if curves else None
    if curves is not None and line is not None:
        kinds = [kind_of(name) for name in dict.fromkeys(one.kind for one in curves.events.get(row.run, ()))]
        key = legend(Curves([line], curves.events, curves.metric), [kind for kind in kinds if kind.on_curve])
        caption = element("figcaption", describe([line]))
        figure = element("figure", alone(curves, line), key, caption)
    report = element("article", _report(run, figure), class_="report", id=link.removeprefix("#"))
    return element("details", summary, report)


def _report(run: HeldRun, figure: Html | None) -> Html:
    try:
        return prose(stored_report(run), _REPORT_LEVEL, figure)
    except (ValueError, KeyError, OSError) as error:
        return join([figure or Html(), element("p", f"The failure report of this run cannot be written: {error}")])

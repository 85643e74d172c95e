"""A sweep as one HTML file that can be mailed, archived or attached to a paper, and read without altgrad.

The file loads nothing from elsewhere (its content security policy forbids it) and contains no script.  Its numbers are
those that the dashboard shows at the time of writing.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib import resources

from altgrad import __version__
from altgrad.html.board import BOARD_STYLE, group_board
from altgrad.html.drawing.charts import Curves
from altgrad.html.failures import failures_section, links_of
from altgrad.html.markup import Html, element, join
from altgrad.html.sections import comparison_section, curves_section, overview, rescues_section, unreadable
from altgrad.html.sweep_contents import METRIC, Contents, read_contents
from altgrad.results import read_events
from altgrad.storage.folder import Folder

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_html_report(
    sweep: Folder, out: str | None = None, margin: float | None = None, with_hidden: bool = False
) -> str:
    """Write the page of a sweep's current state, and return the location of the file.

    `out`: a file (local path or URI); default `report.html` in the sweep's folder.  Raises ValueError for a folder.
    `margin`, `with_hidden`: see `read_contents`.
    """
    place, _, name = (out or "report.html").rpartition("/")
    if not name:
        raise ValueError(f"{out}: expected a file, such as {out}report.html")
    folder = sweep if out is None else Folder.at(place or ("/" if out.startswith("/") else "."))
    folder.write_bytes(name, html_report(sweep, time.time(), margin, with_hidden).encode())
    return str(folder / name)


def html_report(sweep: Folder, now: float, margin: float | None = None, with_hidden: bool = False) -> str:
    """The page of a sweep folder as HTML.  `now`: the time that the page states, in seconds since 1970."""
    contents = read_contents(sweep, margin, with_hidden)
    title = f"Sweep {sweep.name}"
    parts = [_header(contents, title, now)]
    if contents.rows:
        parts.append(_main(contents, now))
    else:
        why = join((element("p", note) for note in contents.shown.notes), "\n") or element("p", _NO_RUN)
        parts.append(element("main", why, unreadable(contents)))
    head = [
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", Html(resources.files("altgrad.html").joinpath("style.css").read_text() + BOARD_STYLE)),
    ]
    page = element("html", element("head", *head), "\n", element("body", join(parts, "\n")), lang="en")
    return f"<!doctype html>\n{page}\n"


_NO_RUN = "No run can be shown: a sweep is a folder of run folders, each with a run.json."


def _header(contents: Contents, title: str, now: float) -> Html:
    at = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    said = f"As of {at}, by altgrad {__version__}, from {contents.sweep}"
    links = (element("a", name, href=f"#{place}") for name, place in _SECTIONS.items()) if contents.rows else ()
    menu = element("nav", join(links, " "), aria_label="Sections")
    return element("header", element("h1", title), element("p", said), menu)


_SECTIONS = {
    "Overview": "overview",
    "Groups": "groups",
    "Comparison": "comparison",
    "Loss curves": "curves",
    "Rescues": "rescues",
    "Failures": "failures",
}


def _main(contents: Contents, now: float) -> Html:
    lines = [contents.lines[row.run] for row in contents.rows if row.run in contents.lines]
    events = {one.row.run: read_events(contents.runs[one.row.run]) for one in lines}
    curves = Curves(lines, events, METRIC) if lines else None
    own = [
        Curves([found[row.run] for row in contents.rows if row.run in found], events, metric, prefix=f"own-{place}")
        for place, (metric, found) in enumerate(contents.own.items())
        if any(row.run in found for row in contents.rows)
    ]
    links = links_of(contents.rows)
    content = [
        overview(contents, links, now),
        group_board(contents.rows, contents.lines, lambda row: None),
        comparison_section(contents, curves, links),
        curves_section(curves, own),
        rescues_section(contents.shown),
        failures_section(contents, curves),
    ]
    sections = [
        element("section", element("h2", name, id=place), part, aria_labelledby=place)
        for (name, place), part in zip(_SECTIONS.items(), content, strict=True)
    ]
    notes = [element("p", note, class_="warning") for note in contents.shown.notes]
    return element("main", *notes, unreadable(contents), join(sections, "\n"))

"""The eye test: every page of a recorded default sweep in a real browser, wide, narrow and on a phone, light and dark.

With `ALTGRAD_PICTURES=1` pictures are left in `artifacts/eye/` (ignored by git), also those that the README shows.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from altgrad.html import html_report
from altgrad.storage.folder import Folder
from tests.servers.browser_visit import ROOT, WANTED, Visit
from tests.servers.page_checks import faults, serious, unmarked, wide_tables

pytestmark = pytest.mark.browser

PICTURES = ROOT / "artifacts" / "eye"
WIDTHS = (1440, 1024, 390)
PAGES = ("overview", "sweep", "curves", "compare", "failures", "layers", "formats", "run")
VIEWS = (
    "curves?layout=bands&sweep=choices",
    "compare?part=learning_rate&sweep=choices",  # two learning rates, and interventions
    "compare?part=groups&sweep=default",
    "compare?part=survival&sweep=default",
    "formats?view=tensors&run=e4m3_stored-s42&sweep=default",
)
README = {"curves": "light", "failures": "dark"}
NOW = 1_795_700_000.0
# In a picture for the README the folder of the results has the name that it has for a reader.
_RENAMED = """
folder => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, "results");
}
"""
_READY = """
() => [...document.querySelectorAll('.js-plotly-plot')].every(one => one._fullLayout && one.querySelector('.main-svg'))
    && ![...document.querySelectorAll('[data-testid=stSkeleton]')].some(e => e.checkVisibility())
"""


@pytest.fixture
def eye(visit: Visit) -> Visit:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return visit


def look(visit: Visit, width: int, scheme: str = "light") -> None:
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 900})
    visit.page.wait_for_timeout(350)  # the page lays itself out anew
    visit.wait_until(_READY)


def picture(visit: Visit, name: str) -> None:
    if not WANTED:
        return
    size = visit.page.viewport_size
    height = visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    visit.page.set_viewport_size({**size, "height": max(900, min(height + 40, 3000))})
    visit.page.screenshot(path=str(PICTURES / f"{name}.png"))
    visit.page.set_viewport_size(size)


def said(found: Mapping[Any, Sequence[str]]) -> str:
    return "\n".join(f"{where}: {what}" for where, all_of in found.items() for what in all_of)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_at_every_width_and_has_no_serious_finding_in_either_theme(
    eye: Visit, results: Path, page: str
) -> None:
    look(eye, WIDTHS[0])
    eye.open(f"{'' if page == 'overview' else page}?sweep=default")
    found = {}
    for width in WIDTHS:
        look(eye, width)
        found[width] = faults(eye.page) + (wide_tables(eye.page) if width >= WIDTHS[1] else [])
        picture(eye, f"{page}-{width}")
        if width == WIDTHS[0]:
            found["axe"] = serious(eye.page)
    look(eye, WIDTHS[0], "dark")
    found["axe in the dark"] = serious(eye.page, "color-contrast")
    picture(eye, f"{page}-dark")
    if WANTED and page in README:
        look(eye, 1400, README[page])
        eye.page.evaluate(_RENAMED, str(results))
        eye.page.screenshot(path=str(PICTURES / f"readme-{page}-{README[page]}.png"))
    assert not said(found)
    eye.assert_clean()


@pytest.mark.parametrize("path", VIEWS)
def test_a_view_of_a_page_is_whole(eye: Visit, path: str) -> None:
    look(eye, WIDTHS[1])
    eye.open(path)
    look(eye, WIDTHS[1])
    found = said({"faults": faults(eye.page), "axe": serious(eye.page)})
    picture(eye, re.sub(r"\W+", "-", path))
    assert not found
    eye.assert_clean()


def test_everything_that_the_keyboard_reaches_shows_it(eye: Visit) -> None:
    look(eye, WIDTHS[0])
    eye.open("compare?sweep=default")
    look(eye, WIDTHS[0])
    assert not unmarked(eye.page, 25)


def test_the_exported_data_of_a_chart_are_what_the_browser_draws(eye: Visit) -> None:
    look(eye, WIDTHS[0])
    eye.open("curves?sweep=default&run=e4m3_stored-s42&run=bf16_baseline-s42")
    look(eye, WIDTHS[0])
    with eye.page.expect_download() as download:
        eye.page.get_by_role("button", name="CSV", exact=True).first.click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    drawn = eye.page.evaluate(
        "document.querySelector('.js-plotly-plot')._fullData.map(trace => [[...trace.x], [...trace.y]])"
    )
    values = [value for _, y in drawn for value in y]
    assert len(rows) == len(values) > 200
    assert [float(row["Step"]) for row in rows] == [step for x, _ in drawn for step in x]
    told = [float(row["Training loss (nats)"] or "nan") for row in rows]
    assert all(a == b or (b is None and math.isnan(a)) for a, b in zip(told, values, strict=True))
    for kind, start in (("SVG", b"<?xml"), ("PDF", b"%PDF"), ("LaTeX", b"% \\usepackage{booktabs")):
        with eye.page.expect_download() as download:
            eye.page.get_by_role("button", name=kind, exact=True).first.click()
        assert Path(download.value.path()).read_bytes().startswith(start)


@pytest.fixture(scope="module")
def report(browser: Any, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html_report(Folder.at(str(results / "default")), NOW))
    page = browser.new_page()
    page.goto(file.as_uri())
    yield page
    page.close()


def test_the_static_report_is_whole_at_every_width_and_in_either_theme(report: Any) -> None:
    found = {}
    for width in WIDTHS:
        report.set_viewport_size({"width": width, "height": 900})
        found[width] = faults(report)
        if WANTED:
            report.screenshot(path=str(PICTURES / f"report-{width}.png"), full_page=True)
    for scheme in ("light", "dark"):
        report.emulate_media(color_scheme=scheme)
        report.set_viewport_size({"width": WIDTHS[0], "height": 900})
        found[scheme] = serious(report, *(["color-contrast"] if scheme == "dark" else []))
        if WANTED:
            report.screenshot(path=str(PICTURES / f"report-{scheme}.png"))
    assert not said(found)
    assert not unmarked(report, 15)


def test_the_printed_report_keeps_every_column_and_the_matrix_and_prints_reports_by_choice(report: Any) -> None:
    paper = (1123 - 90, 794 - 90)  # A4 landscape at 96 dots per inch, less its margins
    report.set_viewport_size({"width": paper[0], "height": paper[1]})
    report.emulate_media(media="print", color_scheme="dark")
    beyond = "[...document.querySelectorAll('th, td, svg, .cell')].filter(e => e.getBoundingClientRect().right > %d)"
    assert not report.evaluate(f"{beyond % (paper[0] + 1)}.map(e => e.outerHTML.slice(0, 120))")
    styles = (
        "(s => [s.printColorAdjust, s.backgroundColor, s.color])(getComputedStyle(document.querySelector('.cell')))"
    )
    cell = report.evaluate(styles)
    assert cell[0] == "exact" and cell[1] != cell[2]
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = report.pdf(prefer_css_page_size=True, print_background=False)
    report.emulate_media(media="screen")
    report.get_by_label("Print the reports below, too").check()
    report.emulate_media(media="print")
    unfolded = report.pdf(prefer_css_page_size=True, print_background=False)
    if WANTED:
        (PICTURES / "report.pdf").write_bytes(folded)
    count = [len(re.findall(rb"/Type\s*/Page\b", pdf)) for pdf in (folded, unfolded)]
    assert 0 < count[0] < count[1], "the reports add pages where they are asked for"

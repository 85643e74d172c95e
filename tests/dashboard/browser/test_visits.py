"""The dashboard in a real browser, as a person uses it: links, clicks, downloads, dark mode, a sweep that goes on."""

from __future__ import annotations

import csv
import socket
import threading
from pathlib import Path

import pytest

from altgrad.results import RunWriter
from altgrad.show.palette import curve_dash, format_colour
from tests.servers.browser_visit import PAGES, Visit
from tests.servers.polling import PATIENCE, SOON
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.browser

VIEWS = ("curves?layout=multiples", "formats?view=precision")
_IS_SHOWN = """
scheme => {
    const {backgroundColor} = getComputedStyle(document.querySelector('[data-testid=stApp]'));
    const [red, green, blue] = backgroundColor.match(/[0-9.]+/g).map(Number);
    return (red + green + blue > 600) === (scheme === "light");
}
"""
# nothing has changed in a page for longer than it takes to look again
AT_REST = "performance.now() - window.changed > 5500"


def test_every_page_is_drawn_without_errors_or_outside_requests_in_both_schemes_with_words_for_who_does_not_see_it(
    visit: Visit,
) -> None:
    visit.open("?sweep=mixed")
    schemes = ["light", "dark"]
    for page in ("Overview", *PAGES):
        if page != "Overview":
            visit.go_to(page)
        for scheme in schemes:
            visit.page.emulate_media(color_scheme=scheme)
            visit.wait_until(_IS_SHOWN, arg=scheme)
            visit.take_picture(f"{page.lower()}-{scheme}")
        schemes.reverse()  # the next page is entered in the other scheme
        _have_words(visit, page)
    visit.page.emulate_media(color_scheme="light")
    for path in VIEWS:
        visit.open(f"{path}&sweep=mixed")
        visit.take_picture(path.translate(str.maketrans("?=&+", "----")))
        _have_words(visit, path)
    visit.assert_clean()


def _have_words(visit: Visit, where: str) -> None:
    """Every chart and table on the page says what it shows."""
    for chart in visit.page.get_by_test_id("stPlotlyChart").all():
        assert chart.get_attribute("role") == "figure" and len(chart.get_attribute("aria-label")) > 20, where
    visit.page.evaluate("document.querySelectorAll('details:not([open]) > summary').forEach(one => one.click())")
    for table in visit.page.get_by_test_id("stDataFrame").all():
        table.locator("[role=grid]").wait_for(state="attached")
        said = table.get_by_test_id("stDataFrameResizable").get_attribute("aria-label")
        assert len(said) > 10 and table.locator("[role=grid] th").count(), where


def test_link_shows_the_same_view_to_somebody_else(visit: Visit, somebody_else: Visit) -> None:
    visit.open("curves?sweep=mixed")
    visit.page.get_by_text("Half-life").wait_for()
    visit.page.get_by_text("seed bands", exact=True).click()
    visit.page.get_by_text("Band: 95 % t interval of the mean").wait_for()
    visit.page.wait_for_url("**layout=bands**")
    somebody_else.page.goto(visit.page.url)
    somebody_else.settle()
    assert "Band: 95 % t interval of the mean" in somebody_else.text()
    assert "sweep=mixed" in somebody_else.page.url


def test_click_on_a_matrix_cell_opens_its_runs(visit: Visit) -> None:
    visit.open("compare?sweep=mixed")
    cell = visit.page.locator(".barlayer .point").last  # E7M0 under clip+shift
    cell.wait_for()
    box = cell.bounding_box()
    visit.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 6)
    visit.page.wait_for_url("**/sweep?**")
    visit.page.get_by_text("3 rows").wait_for()
    assert "format=E7M0" in visit.page.url and "intervention=" in visit.page.url
    visit.assert_clean()


def test_download_is_what_the_table_shows(visit: Visit) -> None:
    visit.open("sweep?sweep=mixed&rows=run&format=E3M4&sort=seed&columns=format&columns=seed")
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download as CSV").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [row["Seed"] for row in rows] == ["1", "2", "3"]
    assert {row["Format"] for row in rows} == {"E3M4"}
    assert "Learning rate" not in rows[0], "a hidden column is in the export"


def test_new_rows_appear_without_reload(visit: Visit, results: Path) -> None:
    sweep = generated.new_sweep(results, "live")
    run = generated.InventedRun("BF16", steps=500, eval_interval=20)
    writer = RunWriter(sweep / run.name, flush_seconds=1.0)
    writer.start(run.info("live"))
    writer.step(next(run.rows(1, 1)))
    writer.flush()
    visit.open(f"run?sweep=live&run={run.name}")
    visit.page.get_by_text("1 of 500").wait_for()
    visit.page.evaluate("window.neverReloaded = true")
    done = threading.Event()
    thread = threading.Thread(target=_write_slowly, args=(writer, run, done))
    thread.start()
    try:
        for _ in range(2):
            before = visit.page.locator("[data-testid=stMetricValue]").nth(1).inner_text()
            visit.wait_until(
                "before => document.querySelectorAll('[data-testid=stMetricValue]')[1]?.innerText !== before",
                arg=before,
            )
    finally:
        done.set()
        thread.join()
    assert visit.page.evaluate("window.neverReloaded")
    visit.assert_clean()


def _write_slowly(writer: RunWriter, run: generated.InventedRun, done: threading.Event) -> None:
    for row in run.rows(2, 499):
        writer.step(row)
        if done.wait(0.1):
            return
    done.wait(PATIENCE)


def test_every_control_of_the_matrix_is_reached_by_keyboard_and_opens_its_runs(visit: Visit) -> None:
    visit.open("compare?sweep=mixed")
    visit.page.locator(".barlayer .point").first.wait_for()
    reached = []
    while "Runs of a cell" not in reached and len(reached) < 60:
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("(e => e.ariaLabel || e.innerText)(document.activeElement)"))
    assert {"Overview", "Failures", "Sweep", "Rescue matrix"} <= set(reached)
    visit.page.keyboard.type("E7M0 · clip+shift")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/sweep?**")
    visit.page.get_by_text("3 rows").wait_for()


def test_formats_have_their_colours_and_interventions_their_dashes_on_the_page(visit: Visit) -> None:
    visit.open("curves?sweep=mixed")
    visit.page.locator(".legend .traces").first.wait_for()
    drawn = visit.page.evaluate("""
        [...document.querySelectorAll('.legend .traces')]
            .map(entry => [entry.textContent, entry.querySelector('.legendlines path')])
            .filter(([name, line]) => line)
            .map(([name, line]) => [name, getComputedStyle(line).stroke, getComputedStyle(line).strokeDasharray])
    """)
    strokes = {name: (colour, dash) for name, colour, dash in drawn}
    for name, (fmt, intervention) in {"E4M3": ("E4M3", "none"), "E7M0 · clip": ("E7M0", "clip")}.items():
        rgb = ", ".join(str(int(format_colour(fmt)[at : at + 2], 16)) for at in (1, 3, 5))
        dash = curve_dash(fmt, intervention)
        assert strokes[name] == (f"rgb({rgb})", "none" if dash == "solid" else dash.replace(" ", ", "))
    own = [dash for name, (_, dash) in strokes.items() if name.startswith("E7M0")]
    assert len(own) == 4 == len(set(own)), "colour alone would tell the interventions apart"


def test_page_at_rest_is_not_drawn_again(visit: Visit) -> None:
    visit.open("curves?sweep=mixed")
    visit.page.locator(".js-plotly-plot").first.wait_for()
    visit.page.evaluate("""
        window.changed = performance.now();
        new MutationObserver(() => { window.changed = performance.now() })
            .observe(document.querySelector('.js-plotly-plot'), {childList: true, subtree: true});
    """)
    visit.wait_until(AT_REST, patience=SOON)


def test_server_listens_to_this_machine_only(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as attempt:
            attempt.settimeout(2)
            assert attempt.connect_ex((address, port)) != 0, f"open to the network at {address}"

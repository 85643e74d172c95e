"""The dashboard in a real browser, as a person uses it: links, clicks, downloads, dark mode, a sweep that goes on.

Needs Debian's Chromium and Playwright's Python package; without either every test here is skipped.  Pictures of all
pages are left in `artifacts/dashboard/` (ignored by git) for somebody to look at.
"""

from __future__ import annotations

import csv
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from altgrad.results import RunWriter, Verdict
from altgrad.show.palette import curve_dash, format_colour
from tests.support import generated_results as generated

CHROMIUM = "/usr/bin/chromium"
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "artifacts" / "dashboard"
PAGES = ("Sweep", "Curves", "Compare", "Failures", "Layers", "Formats", "Run")  # besides the overview
VIEWS = ("curves?layout=multiples", "formats?view=precision")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
LIVE_SECONDS = 5


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    generated.mixed_sweep(root)
    return root


@pytest.fixture(scope="module")
def server(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address; started from a folder that is not the project's, as users do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard"), "--server.port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--", str(results)], cwd=log.parent, stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        else:
            pytest.fail(f"the server did not start: {log.read_text()}")
        yield address
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


class Visit:
    """A browser page that notes console errors and requests to other hosts."""

    def __init__(self, browser: Any, server: str, scheme: str = "light") -> None:
        self.server = server
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme=scheme).new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)

    def _note(self, message: Any) -> None:
        # Opened below its root, Streamlit's own front end first asks for its server under the page's path.
        probe = "_stcore" in (message.location or {}).get("url", "")
        if message.type == "error" and not probe:
            self.errors.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.server, self.server.replace("http", "ws"), "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.server}/{path}")
        self.settle()

    def go_to(self, page: str) -> None:
        self.page.get_by_role("link", name=page, exact=True).click()
        self.page.locator("h1", has_text=page).wait_for()
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("h1", timeout=30_000)
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=30_000)

    def text(self) -> str:
        return self.page.inner_text("[data-testid=stMain]")

    def take_picture(self, name: str) -> None:
        """The whole page, however long."""
        self.page.wait_for_timeout(200)
        height = self.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
        self.page.set_viewport_size({"width": 1400, "height": max(1000, min(height + 40, 5000))})
        self.page.wait_for_timeout(250)
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(PICTURES / f"{name}.png"))
        self.page.set_viewport_size({"width": 1400, "height": 1000})

    def assert_clean(self) -> None:
        assert not self.outside, f"requests to other hosts: {self.outside}"
        assert not self.errors, f"console errors: {self.errors}"
        assert not self.page.locator("[data-testid=stException]").count()

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Visit]:
    opened = Visit(browser, server)
    yield opened
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn_without_errors_or_outside_requests(browser: Any, server: str, scheme: str) -> None:
    visit = Visit(browser, server, scheme)
    visit.open("?sweep=mixed")
    visit.take_picture(f"overview-{scheme}")
    for name in PAGES:
        visit.go_to(name)
        visit.take_picture(f"{name.lower()}-{scheme}")
    for path in VIEWS if scheme == "light" else ():
        visit.open(f"{path}&sweep=mixed")
        visit.take_picture(path.translate(str.maketrans("?=&+", "----")))
    background = visit.page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")[:3])
    assert (brightness > 600) == (scheme == "light"), background
    visit.assert_clean()
    visit.close()


def test_link_shows_the_same_view_to_somebody_else(browser: Any, visit: Visit) -> None:
    visit.open("?sweep=mixed")
    visit.page.get_by_role("link", name="Curves", exact=True).click()
    visit.page.get_by_text("Smoothing half-life").wait_for()
    visit.page.get_by_text("seed bands", exact=True).click()
    visit.page.get_by_text("Band: lowest to highest seed").wait_for()
    visit.page.wait_for_url("**layout=bands**")
    other = Visit(browser, visit.server)
    other.page.goto(visit.page.url)
    other.settle()
    assert "Band: lowest to highest seed" in other.text()
    assert "sweep=mixed" in other.page.url
    other.close()


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
    visit.open("sweep?sweep=mixed&format=E3M4&sort=seed")
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
            visit.page.wait_for_function(
                "before => document.querySelectorAll('[data-testid=stMetricValue]')[1]?.innerText !== before",
                arg=before,
                timeout=LIVE_SECONDS * 1000,
            )
    finally:
        done.set()
        thread.join()
    assert visit.page.evaluate("window.neverReloaded")
    visit.assert_clean()


def _write_slowly(writer: RunWriter, run: generated.InventedRun, done: threading.Event) -> None:
    for row in run.rows(2, 400):
        writer.step(row)
        if done.wait(0.05):
            return


def test_charts_and_tables_have_words_for_those_who_do_not_see_them(visit: Visit) -> None:
    for path in ("curves?layout=multiples&", "compare?", "failures?", "run?"):
        visit.open(f"{path}sweep=mixed")
        visit.page.locator(".js-plotly-plot").first.wait_for()
        for chart in visit.page.get_by_test_id("stPlotlyChart").all():
            assert chart.get_attribute("role") == "figure" and len(chart.get_attribute("aria-label")) > 20, path
        for table in visit.page.get_by_test_id("stDataFrame").all():
            table.locator("[role=grid]").wait_for(state="attached")
            said = table.get_by_test_id("stDataFrameResizable").get_attribute("aria-label")
            assert len(said) > 10 and table.locator("[role=grid] th").count(), path


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
    visit.page.wait_for_timeout(500)
    visit.page.evaluate("""
        window.changes = 0;
        new MutationObserver(found => { window.changes += found.length })
            .observe(document.querySelector('.js-plotly-plot'), {childList: true, subtree: true});
    """)
    visit.page.wait_for_timeout(4_500)
    assert visit.page.evaluate("window.changes") == 0


def test_server_listens_to_this_machine_only(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as attempt:
            attempt.settimeout(2)
            assert attempt.connect_ex((address, port)) != 0, f"open to the network at {address}"


HOSTILE = "![i](http://evil.test/a.png) <img src=http://evil.test/b.png> [c](http://evil.test) `$(touch x)` :red[y]"


def disguised_links(visit: Visit) -> list[str]:
    """Links that lead elsewhere than they say; an address that is written out may be one."""
    return visit.page.evaluate("""
        [...document.querySelectorAll("a[href^='http://evil.test']")]
            .filter(link => !decodeURI(link.href).startsWith(link.innerText)).map(link => link.outerHTML)
    """)


@pytest.fixture(scope="module")
def hostile(results: Path) -> str:
    """A sweep whose runs' names, errors, reasons, events, configs and stored report ask for something elsewhere."""
    sweep = generated.new_sweep(results, "hostile ![n](http:evil.test)")
    for seed, ending in enumerate(("completed", "collapsed", "failed"), start=1):
        for fmt in ("BF16", "E7M0"):
            run = generated.InventedRun(
                fmt, seed=seed, steps=60, eval_interval=20, diagnostic_interval=10, data=HOSTILE.replace("http:", "")
            )
            writer = RunWriter(sweep / f"{fmt}-{seed}", flush_seconds=1e9)
            name = f"{fmt} {seed} {HOSTILE}"
            told = {"run": name, "host": HOSTILE, "git_commit": HOSTILE, "layers": [HOSTILE], "device": HOSTILE}
            writer.start(run.info(sweep.name) | told)
            for row in run.rows(1, 60):
                writer.step(row)
            writer.layers({**row, "layer": f"{row['layer']} {HOSTILE}"} for row in run.layer_rows(10))
            writer.event(10, "restore", step=1, reason=HOSTILE)
            verdict = Verdict(50, "stalled", HOSTILE, 0.0, 1.0, HOSTILE) if ending == "collapsed" else None
            writer.end(ending, verdict, {"error": HOSTILE} if ending == "failed" else {})
    (sweep / "E7M0-2").write_bytes(
        "failure_report.md", f"# {HOSTILE}\n\n{HOSTILE}\n\n![r]\n\n[r]: http://evil.test/c\n".encode()
    )
    (sweep / "torn").write_bytes("run.json", f'{{"schema": 1, "config": "{HOSTILE}"}}'.encode())
    return sweep.name


def test_hostile_names_texts_and_reports_load_nothing_and_are_shown_as_written(visit: Visit, hostile: str) -> None:
    visit.open(f"?sweep={quote(hostile)}")
    visit.take_picture("hostile-overview")
    for name in PAGES:
        visit.go_to(name)
        visit.page.wait_for_timeout(300)
        visit.take_picture(f"hostile-{name.lower()}")
        assert not visit.page.locator("[data-testid=stMain] img, [data-testid=stSidebar] img").count(), name
        assert not disguised_links(visit), name
    for path in ("failures", "run", "layers"):
        visit.open(f"{path}?sweep={quote(hostile)}&run={quote(f'E7M0 2 {HOSTILE}')}")
        visit.page.wait_for_timeout(300)
        assert "![i](http://evil.test/a.png)" in visit.text() or path == "layers"
        assert not visit.page.locator("img").count() and not disguised_links(visit), path
    visit.open("overview?sweep=![x](http://evil.test/d.png)")
    visit.open(f"curves?sweep={quote(hostile)}&run={quote(HOSTILE)}&group={quote(HOSTILE)}")
    assert not visit.outside, visit.outside


def test_nan_is_told_from_what_was_not_measured_on_the_page_and_in_the_download(visit: Visit, results: Path) -> None:
    sweep = generated.new_sweep(results, "nan")
    for name, losses in {"none": {}, "nan": {10: 2.0, 20: math.nan}, "fine": {10: 2.0, 20: 1.0}}.items():
        writer = RunWriter(sweep / name, flush_seconds=1e9)
        writer.start(generated.InventedRun("E4M3", steps=20).info("nan") | {"run": name})
        for step in (10, 20):
            writer.step({"step": step, "loss": 2.0} | ({"validation_loss": losses[step]} if losses else {}))
        writer.end("completed", None, {})
    visit.open("sweep?sweep=nan")
    cells = visit.page.locator("[role=grid] [role=gridcell]")
    visit.page.locator("[role=grid]").first.wait_for(state="attached")
    assert "NaN" in cells.all_inner_texts()
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download as CSV").click()
    rows = {row["Run"]: row for row in csv.DictReader(Path(download.value.path()).read_text().splitlines())}
    assert [rows[name]["Validation loss"] for name in ("none", "nan", "fine")] == ["", "nan", "1.0"]

"""What a viewer does to a chart survives: zoom and hidden entries are in the URL and in every later drawing of it.

A page whose updates are paused stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from altgrad.results import RunWriter
from tests.servers.browser_visit import Visit
from tests.servers.polling import PATIENCE
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.browser

PLOT = "document.querySelector('.js-plotly-plot')"
LAST = f"Math.max(...{PLOT}._fullData.map(trace => Number(trace.x?.at?.(-1) ?? 0)))"
CHART_SHOWS = f"least => {PLOT}?._fullData && {LAST} >= least"


@contextmanager
def live_sweep(results: Path) -> Iterator[threading.Thread]:
    """Two runs, which get a step every 0.1 s as soon as the thread is started."""
    sweep, done = generated.new_sweep(results, "live-chart"), threading.Event()
    writers = []
    for format in ("BF16", "E4M3"):
        run = generated.InventedRun(format, steps=20_000, eval_interval=20)
        writer = RunWriter(sweep / run.name, flush_seconds=1.0)
        writer.start(run.info(sweep.name))
        for row in run.rows(1, 40):
            writer.step(row)
        writer.flush()
        writers.append((writer, run.rows(41, 20_000)))

    def write() -> None:
        while not done.wait(0.1):
            for writer, rows in writers:
                writer.step(next(rows))

    thread = threading.Thread(target=write)
    try:
        yield thread
    finally:
        done.set()
        if thread.is_alive():
            thread.join(PATIENCE)


def ranges(visit: Visit) -> list[list[float]]:
    return visit.page.evaluate(f"[{PLOT}._fullLayout.xaxis.range, {PLOT}._fullLayout.yaxis.range]")


def drag(visit: Visit, across: tuple[float, float]) -> None:
    """Draw a box over these shares of the chart's width and height, as to zoom."""
    box = visit.page.locator(".js-plotly-plot .nsewdrag").bounding_box()
    x, y, width, height = (box[side] for side in ("x", "y", "width", "height"))
    visit.page.mouse.move(x + across[0] * width, y + 0.2 * height)
    visit.page.mouse.down()
    visit.page.mouse.move(x + across[1] * width, y + 0.8 * height, steps=5)
    visit.page.mouse.up()


def test_zoom_and_hidden_entries_are_in_the_url_and_survive_live_updates(
    visit: Visit, somebody_else: Visit, results: Path
) -> None:
    with live_sweep(results) as writer:
        visit.open("curves?sweep=live-chart")
        visit.wait_until(CHART_SHOWS, arg=40)
        visit.page.locator(".js-plotly-plot .nsewdrag").wait_for()
        drag(visit, (0.2, 0.6))
        visit.page.wait_for_url("**zoom_x=**")
        visit.page.locator(".legendtoggle").first.click()
        visit.page.wait_for_url("**hide=**")
        zoomed = ranges(visit)
        assert zoomed[0][0] > 1 and zoomed[1][0] > 1
        hidden = visit.page.evaluate(f"{PLOT}.data.filter(trace => trace.visible === 'legendonly').length")
        assert hidden
        writer.start()
        seen = visit.page.evaluate(LAST)
        for _ in range(2):  # two live updates, without the viewer's doing
            seen += 1
            visit.wait_until(CHART_SHOWS, arg=seen)
            seen = visit.page.evaluate(LAST)
        for now, then in zip(ranges(visit), zoomed, strict=True):
            assert now == pytest.approx(then, rel=1e-4)
        assert visit.page.evaluate(f"{PLOT}.data.filter(trace => trace.visible === 'legendonly').length") == hidden
        visit.page.get_by_role("button", name="Undo the zoom and show hidden entries").click()
        visit.page.wait_for_url(lambda url: "zoom" not in url and "hide" not in url)
        visit.page.get_by_text("Pause live updates").click()
        visit.page.get_by_text("Paused: nothing new is read").wait_for()
        visit.settle()
        still = visit.page.evaluate(LAST)
        somebody_else.open("curves?sweep=live-chart")  # the sweep goes on
        somebody_else.wait_until(CHART_SHOWS, arg=still + 10)
        assert visit.page.evaluate(LAST) == still and "pause=true" in visit.page.url
        visit.page.get_by_text("Pause live updates").click()
        visit.wait_until(CHART_SHOWS, arg=still + 10)
    visit.assert_clean()

"""Foreign texts and numbers in a real browser: nothing is loaded from elsewhere, links say where they lead."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from urllib.parse import quote

import pytest

from altgrad.results import RunWriter, Verdict
from tests.servers.browser_visit import PAGES, Visit
from tests.support.results import generated_results as generated

pytestmark = pytest.mark.browser

HOSTILE = "![i](http://evil.test/a.png) <img src=http://evil.test/b.png> [c](http://evil.test) `$(touch x)` :red[y]"

FOREIGN_IMAGES = 'img:not([src^="data:image/svg+xml,"])'  # the drawings of the board carry their own data


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
        if name in ("Failures", "Layers", "Run"):
            visit.open(f"{name.lower()}?sweep={quote(hostile)}&run={quote(f'E7M0 2 {HOSTILE}')}")
            visit.page.wait_for_timeout(300)
            assert "![i](http://evil.test/a.png)" in visit.text() or name == "Layers"
        else:
            visit.go_to(name)
            visit.page.wait_for_timeout(300)
        visit.take_picture(f"hostile-{name.lower()}")
        assert not visit.page.locator(FOREIGN_IMAGES).count() and not disguised_links(visit), name
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
    visit.open("sweep?sweep=nan&rows=run")
    cells = visit.page.locator("[role=grid] [role=gridcell]")
    visit.page.locator("[role=grid]").first.wait_for(state="attached")
    assert "NaN" in cells.all_inner_texts()
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download as CSV").click()
    rows = {row["Run"]: row for row in csv.DictReader(Path(download.value.path()).read_text().splitlines())}
    assert [rows[name]["Validation loss"] for name in ("none", "nan", "fine")] == ["", "nan", "1.0"]

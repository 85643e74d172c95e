"""Event kinds: one registry, which every writer fills and every reader asks."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pyarrow as pa
import pytest

from altgrad.compare import comparison
from altgrad.config.train_config import TrainConfig
from altgrad.events import EVENTS, Event, check_kind, kind_of
from altgrad.html import write_html_report
from altgrad.html.drawing.chart_marks import EVENT_GLYPHS
from altgrad.report import write_failure_report
from altgrad.results import SCHEMAS, NoWriter, RunWriter, acts, read_events, read_run, read_table
from altgrad.results.part_file import encoded
from altgrad.results.parts import part_name
from altgrad.show.palette import NEUTRAL, event_colour
from altgrad.show.sweep_progress import newest_events
from altgrad.storage.folder import Folder
from tests.support.results import generated_results as generated

ROOT = Path(__file__).parents[2]


def emitted(source: str) -> set[str]:
    """Kinds in the source that are handed to a method called `event`; `?` for one that is no literal."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event"):
            continue
        texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        passed_on = any(isinstance(one, ast.Attribute) and one.attr == "kind" for one in node.args)
        found |= set(texts) or (set() if passed_on else {"?"})
    return found


def kinds_of_the_library() -> set[str]:
    return {kind for folder in ("altgrad", "tune") for path in (ROOT / folder).rglob("*.py")
            for kind in emitted(path.read_text())}  # fmt: skip


def test_what_is_emitted_is_registered_and_what_is_registered_is_emitted() -> None:
    assert emitted('state.event("clip", limit=1)\nw.event(3, "x")\nw.event(1, name)\nw.event(e.step, e.kind)') == {
        "clip",
        "x",
        "?",
    }
    assert kinds_of_the_library() == EVENTS.keys()


def test_acts_are_what_an_intervention_does_and_nothing_else() -> None:
    """By hand: these five change weights, gradients, formats or the rate; nothing else that is recorded does."""
    known = {"clip", "skip", "rollback", "rate_cut", "format_shift"}
    assert {kind.name for kind in EVENTS.values() if kind.is_act} == known
    happened = [Event(1, name, {}) for name in [*EVENTS, "of_another_version", "clip"]]
    assert acts(happened) == {"clip": 2, "skip": 1, "rollback": 1, "rate_cut": 1, "format_shift": 1}


@pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.name)
def test_every_kind_says_what_it_means_and_can_be_drawn_everywhere(kind) -> None:
    assert re.fullmatch(r"[a-z_]+", kind.name) and kind.label and len(kind.meaning) > 20
    assert go.Scatter(marker={"symbol": kind.symbol}).marker.symbol == kind.symbol  # plotly refuses unknown symbols
    assert EVENT_GLYPHS[kind.symbol].startswith("m")
    assert event_colour(kind, "E4M3") == (NEUTRAL if kind.colour == "neutral" else event_colour(kind_of("?"), "E4M3"))


@pytest.mark.parametrize("writer", [RunWriter, NoWriter])
def test_a_writer_refuses_an_unknown_kind_in_one_line(tmp_path: Path, writer) -> None:
    for name in ("clipped", "", "Clip", "clip "):
        with pytest.raises(ValueError, match="known: clip") as refused:
            writer(Folder.at(tmp_path)).event(1, name)
        assert repr(name) in str(refused.value) and "\n" not in str(refused.value)
    check_kind("clip")


def test_an_older_folder_with_a_kind_nobody_knows_stays_readable(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    writer = RunWriter(folder)
    writer.start({"run": "old", "config": TrainConfig().model_dump(mode="json")})
    writer.event(3, "clip", limit=1.0)
    writer.end("completed", None, {})
    row = {"step": 5, "attempt": 0, "time": 1.0, "kind": "gear_shift", "detail": json.dumps({"to": "third"})}
    part = encoded("events", pa.Table.from_pylist([row], schema=SCHEMAS["events"]))
    folder.write_bytes(f"events/{part_name(0, 9)}", part)
    assert read_table(folder, "events", ["kind"]).num_rows == 2

    run = read_run(folder)
    events = read_events(run)
    assert [(event.step, event.kind) for event in events] == [(3, "clip"), (5, "gear_shift")]
    assert acts(events) == {"clip": 1}
    assert (kind_of("gear_shift").label, kind_of("gear_shift").is_act) == ("gear_shift", False)
    assert EVENT_GLYPHS[kind_of("gear_shift").symbol]


def test_of_steps_that_were_trained_again_the_events_of_the_later_attempt_count(tmp_path: Path) -> None:
    """The second attempt begins with step 6, the third with step 11: what happened from there on before, did not."""
    folder = Folder.at(tmp_path)
    for attempt, steps, happened in (
        (0, range(1, 11), (3, 6, 9)),
        (1, range(6, 13), (6, 11)),
        (2, range(11, 15), [13]),
    ):
        writer = RunWriter(folder, attempt)
        writer.start({"run": "r", "config": TrainConfig().model_dump(mode="json")})
        for step in steps:
            writer.step({"step": step, "loss": 1.0})
        for step in happened:
            writer.event(step, "clip", attempt=attempt)
        writer.flush()
    found = [(event.step, event.detail["attempt"]) for event in read_events(read_run(folder))]
    assert found == [(3, 0), (6, 1), (13, 2)]
    (newest,) = newest_events([read_run(folder)], 5)
    assert (newest["Times"], newest["Last step"]) == (3, 13)


@pytest.mark.parametrize("kind", ["clip", "format_shift", "verdict"])
@pytest.mark.parametrize(
    "detail", ["", None, "{", "[1, 2]", "null", "7", '"x"', "{}", '{"to": 3, "sentence": []}', '{"from": null}',
               "[" * 9999, '{"from": "E4M3", "to": "E99M99"}', '{"limit": NaN}', "\x00"],
    ids=repr,
)  # fmt: skip
def test_whatever_a_detail_holds_no_reader_ends_in_a_traceback(tmp_path: Path, kind: str, detail: str | None) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    run = generated.InventedRun("E4M3", steps=20, eval_interval=10, diagnostic_interval=10)
    generated.write_run(sweep, run, "collapsed", verdict=generated.STALLED)
    row = {"step": 5, "attempt": 0, "time": 1.0, "kind": kind, "detail": detail}
    part = encoded("events", pa.Table.from_pylist([row], schema=SCHEMAS["events"]))
    (sweep / run.name).write_bytes(f"events/{part_name(0, 9)}", part)
    found = read_run(sweep / run.name)
    assert kind in {event.kind for event in read_events(found)}
    assert all(isinstance(one["Particulars"], str) for one in newest_events([found], 9))
    assert len(comparison([found])) == 1
    write_failure_report(sweep / run.name)
    write_html_report(sweep, str(tmp_path / "page.html"))


def test_no_module_switches_on_kinds_with_a_list_of_its_own() -> None:
    """The particulars of three kinds are read; the kinds of an explanation's arms are no events."""
    compared = re.compile(r"kind\w* (?:==|!=|in|not in) [\"'({]([a-z_]*)")
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in ("altgrad", "dashboard", "tune")
        for path in (ROOT / folder).rglob("*.py")
        for name in compared.findall(path.read_text())
        if name in EVENTS or not name
    }
    assert found == {
        ("altgrad/results/reading/events.py", "format_shift"),
        ("altgrad/compare/comparison_table.py", "format_shift"),
        ("altgrad/report/failure_report.py", "phase"),
        ("altgrad/explain/arms.py", ""),
        ("altgrad/show/sweep_status.py", "collapse_warning"),
    }

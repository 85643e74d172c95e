"""What a person sees on a terminal of any size: whole cells, no more than a screen, and what was left out is said."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from altgrad.__main__ import main
from altgrad.compare import Shown, comparison, comparison_table, parity_table
from altgrad.results import list_runs
from altgrad.storage.folder import Folder
from altgrad.text.fitted_table import FittedColumn, FittedTable
from altgrad.text.terminal_output import tell
from tests.support.results.generated_results import (
    STALLED,
    InventedRun,
    mixed_sweep,
    new_sweep,
    running_sweep,
    write_run,
)
from tune.watch.ending import Ending

ROOT = Path(__file__).parents[2]
COLUMNS = [
    FittedColumn("Run", ["bf16", "a_name_that_is_longer_than_any_terminal_is_wide_" * 3, "x"]),
    FittedColumn("Validation loss", ["3.14159265", "12345.678", "NaN"], is_number=True),
    FittedColumn("What became of it", ["completed", "not as good as BF16: 1 of 1 collapsed", "–"]),
    FittedColumn("Steps", ["100", "20000", "7"], is_number=True),
]


def printed(table: Any, width: int, height: int = 24) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=width, height=height)
    console.print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def cells_of(lines: Iterable[str], heads: int) -> list[str]:
    """The text below each heading with all white space taken out: a cell may be folded over several lines."""
    rows = list(lines)
    rule = next(n for n, line in enumerate(rows) if set(line) == {"─"})
    starts = [found.start() for found in re.finditer(r"(?<!\S)\S", _heads(rows[:rule]))][:heads]
    ends = [*starts[1:], None]
    body = rows[rule + 1 :]
    return ["".join("".join(line[a:b].split()) for line in body) for a, b in zip(starts, ends, strict=True)]


def _heads(lines: list[str]) -> str:
    """Where a heading has a character in any of its lines, with one blank between the words of a heading filled."""
    width = max(map(len, lines))
    seen = "".join("x" if any(line[n : n + 1].strip() for line in lines) else " " for n in range(width))
    return re.sub(r"(?<=x) (?=x)", "x", seen)


# Narrowest: 32 of the name, which is folded there, 10 ("Validation"), 9 ("completed"), 5; two spaces between two.
@pytest.mark.parametrize(
    ("width", "fit"),
    [(12, 1), (31, 1), (43, 1), (44, 2), (54, 2), (55, 3), (61, 3), (62, 4), (80, 4), (240, 4)],
)
def test_no_cell_is_cut_off_and_what_has_no_room_is_named(width: int, fit: int) -> None:
    lines = printed(FittedTable(COLUMNS, "A title"), width)
    assert all(len(line) <= width for line in lines) and "…" not in "".join(lines)
    note = next((n for n, line in enumerate(lines) if line.startswith("too wide")), len(lines))
    words, left_out = set(" ".join(lines[:note]).split()), " ".join(lines[note:])
    for column in COLUMNS[1:]:
        if column.head not in left_out:
            assert words.issuperset(" ".join(column.cells).split())  # neither numbers nor words are split
    shown = [column.head for column in COLUMNS if column.head not in left_out]
    assert shown == [column.head for column in COLUMNS][:fit]


def test_a_folded_cell_is_there_to_its_last_character() -> None:
    only = [COLUMNS[0], COLUMNS[1]]
    for width in (50, 60, 80):
        names, numbers = cells_of(printed(FittedTable(only), width), 2)
        assert names == "".join(COLUMNS[0].cells) and numbers == "".join(COLUMNS[1].cells)


@pytest.mark.parametrize("lines", [4, 5, 8, 20])
def test_rows_without_room_are_counted(lines: int) -> None:
    cells = [f"run{n}" + " word" * (n % 5) * 4 for n in range(40)]
    shown = printed(FittedTable([FittedColumn("Run", cells)], lines=lines), 20)
    assert len(shown) <= max(lines, 4)  # at least one row
    hidden = int(re.fullmatch(r"and (\d+) more", shown[-1])[1])  # type: ignore[index]
    assert len(re.findall(r"run\d+", " ".join(shown))) == 40 - hidden


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return mixed_sweep(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_comparison_of_a_sweep_fits_and_names_every_run(mixed: Folder, width: int) -> None:
    rows = comparison(list_runs(mixed)[0])
    for table in (comparison_table(rows), parity_table(rows)):
        lines = printed(table, width)
        assert all(len(line) <= width for line in lines) and "…" not in "".join(lines)
    text = "".join("".join(printed(comparison_table(rows), width)).split())
    assert all(row.run in text for row in rows)


@pytest.mark.parametrize(("terminal", "lines"), [(True, 3), (False, 1)])
def test_a_sentence_breaks_between_words_on_a_terminal_and_nowhere_in_a_log(terminal: bool, lines: int) -> None:
    sentence = "how long they take was not measured here: --dry-run --probe does"
    text = io.StringIO()
    tell(Console(file=text, force_terminal=terminal, color_system=None, width=30), sentence)
    assert len(text.getvalue().splitlines()) == lines and text.getvalue().split() == sentence.split()


TROUBLES = [f"failed: run{n}: RuntimeError: out of memory" for n in range(9)]
PLACES = ["try again: altgrad sweep --resume mixed", "results: mixed", "dashboard: altgrad dashboard results"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (120, 50)])
@pytest.mark.parametrize("troubles", [[], TROUBLES], ids=["well", "troubled"])
def test_the_end_of_a_sweep_is_one_screen(mixed: Folder, width: int, height: int, troubles: list[str]) -> None:
    runs = list_runs(mixed)[0]
    rows = comparison(runs)
    reports = {run.name: f"mixed/{run.folder.name}/failure_report.md" for run in runs if run.verdict is not None}
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=width, height=height)
    Ending("mixed", Shown(rows), "Compute: 2 CPU-core-hours spent", reports, troubles, PLACES).show(console)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert len(lines) < height and all(len(line) <= width for line in lines) and "…" not in "".join(lines)
    assert lines[0] == "mixed: 28 runs: 20 completed, 7 collapsed, 1 killed"
    said = " ".join(" ".join(lines).split())
    assert "E0M7 reached NaN or inf at step 75" in said  # the first collapse of a rule comes before all others
    assert said.index("E0M7 reached NaN") < said.index("froze at step 80") if "froze" in said else height < 40
    assert [place for place in PLACES if place in said] == PLACES and reports["e0m7_lr0.0006_s42"] in said
    assert "margin 0.01 nats" in said and "undecided, needs about 8 seeds" in said
    told = sum(trouble in said for trouble in troubles)
    assert not troubles or (told and f"and {len(troubles) - told} more of these" in said)


def test_a_log_gets_everything(mixed: Folder) -> None:
    runs = list_runs(mixed)[0]
    rows = comparison(runs)
    reports = {run.name: f"{run.name}/failure_report.md" for run in runs if run.verdict is not None}
    text = io.StringIO()
    Ending("mixed", Shown(rows), None, reports, TROUBLES, PLACES).show(Console(file=text, width=200))
    for words in itertools.chain((row.run for row in rows), reports.values(), TROUBLES, PLACES, ["Parity with BF16"]):
        assert words in text.getvalue()


def test_a_sweep_of_which_nothing_can_be_read_ends_as_well() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=24)
    Ending("lost", Shown([]), None, {}, ["lost: bf16: its run.json is gone"], PLACES[:1]).show(console)
    assert "lost: bf16: its run.json is gone" in text.getvalue() and "0 runs" in text.getvalue()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 12)])
def test_status_fits_the_terminal_and_says_how_many_runs_it_shows(tmp_path: Path, columns: int, lines: int) -> None:
    sweep = new_sweep(tmp_path, "many", planned=1)
    plan = sweep.read_json("sweep.json")
    runs = [InventedRun("E4M3", seed=seed, steps=20, eval_interval=10) for seed in range(12)]
    for run in runs:
        write_run(sweep, run, *(("collapsed", 10, STALLED) if run is runs[9] else ()))
    planned = [
        plan["runs"][0] | {"run": run.name} for run in (*runs, *(InventedRun("E5M2", seed=s) for s in range(30)))
    ]
    sweep.write_json("sweep.json", {**plan, "runs": planned})
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [sys.executable, "-m", "altgrad", "status", str(tmp_path / "many")]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=its_end, stdout=its_end, stderr=its_end, env=environment | {"TERM": "xterm"}
    )
    os.close(its_end)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the process has closed it
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    rows = [line.rstrip() for line in text.split("\n")]
    assert all(len(line) <= columns for line in rows) and len(rows) <= lines
    seen = int(re.search(r"(\d+) of 42 shown", text)[1])  # type: ignore[index]
    assert (
        0 < seen < 42 and "30 waiting" in " ".join(text.split()) and "e4m3_lr0.0006_s9" in text
    )  # the one that collapsed


def test_a_person_who_has_seen_enough_gets_the_shell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    running_sweep(tmp_path)
    monkeypatch.setattr("altgrad.commands.steering.time.sleep", interrupted)
    monkeypatch.setattr("altgrad.show.sweep_status.goes_on", lambda sweep, states: True)
    assert main(["status", str(tmp_path / "running"), "--every", "5"]) == 130

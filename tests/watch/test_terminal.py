"""Output that only shows: foreign text cannot steer the terminal, and no reader can end what writes."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from altgrad.__main__ import main
from altgrad.compare import comparison, comparison_table
from altgrad.config.train_config import TrainConfig
from altgrad.results import RunWriter, list_runs
from altgrad.show.sweep_status import status_table, sweep_state
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import Outlet, cell, harmless, one_line, say
from tests.servers.polling import PATIENCE, wait_for

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [enforce fail at alloc.cpp:114] [/x] [bold]:fire: \u202eabc\u2028\r\x9b31m\x00"
STEERING = ["\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\x00", "\r"]


def test_no_character_that_steers_a_terminal_is_left_of_any_character_there_is() -> None:
    everything = "".join(chr(number) for number in range(0x110000))
    shown = harmless(everything)
    assert not [
        c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000)
    ]
    assert "aé漢🎈–" in shown + harmless("aé漢🎈–") and "\\x1b" in shown and "\\u202e" in shown
    shown.encode()  # no half characters


def shown_by(print_it: Any) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=400, color_system=None, legacy_windows=False)
    print_it(console)
    return text.getvalue()


@pytest.mark.parametrize("how", ["line", "table"])
def test_foreign_text_is_shown_whole_and_never_as_markup(how: str) -> None:
    def table(console: Console) -> None:
        one = Table()
        one.add_row(cell(HOSTILE))
        console.print(one)

    text = shown_by(table if how == "table" else lambda console: say(console, HOSTILE))
    for words in ("[enforce fail at alloc.cpp:114]", "[/x]", "[bold]", ":fire:", "\\x1b[2J", "\\u202eabc"):
        assert words in text
    assert not [character for character in STEERING if character in text]


@pytest.fixture
def hostile_sweep(tmp_path: Path) -> Folder:
    sweep = Folder.at(tmp_path / "s")
    config = TrainConfig(format="E4M3").model_dump(mode="json")
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": "a[bold]", "config": config}]})
    writer = RunWriter(sweep / "a[bold]")
    writer.start({"run": "a[bold]", "config": config, "intervention": "none", "sweep": "s"})
    writer.end("failed", None, {"error": HOSTILE, "steps": 3})
    return sweep


def test_the_tables_of_the_command_line_show_hostile_records_as_text(hostile_sweep: Folder) -> None:
    assert main(["status", str(hostile_sweep)]) == 0
    runs, _ = list_runs(hostile_sweep)
    tables = status_table(sweep_state(hostile_sweep)), comparison_table(comparison(runs))
    text = shown_by(lambda console: [console.print(table) for table in tables])
    assert text.count("a[bold]") == 2 and "[enforce" in text
    assert not [character for character in STEERING if character in text]


# an outlet


def test_an_outlet_writes_everything_in_order() -> None:
    text = io.StringIO()
    outlet = Outlet(text)
    for number in range(1000):
        print(number, file=outlet)
    outlet.drain()
    assert text.getvalue().split() == [str(number) for number in range(1000)]


class Raises(io.StringIO):
    def write(self, text: str, /) -> int:
        raise self.error

    error: BaseException = BrokenPipeError("gone")


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), ValueError("closed file"), RuntimeError()])
def test_a_broken_stream_is_told_once_and_ends_nothing(error: Exception) -> None:
    stream, told = Raises(), []
    stream.error = error
    outlet = Outlet(stream, told.append)
    for _ in range(10):
        print("words", file=outlet)
        outlet.drain()
    wait_for(lambda: told)
    assert told == [type(error).__name__]


def test_a_reader_that_does_not_read_holds_nothing_up() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        outlet = Outlet(stream)
        for _ in range(20_000):
            print("x" * 100, file=outlet)  # nobody reads until all of it is printed
        threading.Thread(target=lambda: [os.read(reader, 65536) for _ in range(1000)], daemon=True).start()
        outlet.drain()


@pytest.mark.parametrize("text", ["é–\ud800", HOSTILE])
def test_a_character_that_the_stream_does_not_know_is_replaced(text: str) -> None:
    raw = io.BytesIO()
    outlet = Outlet(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    print(text, "end", file=outlet)
    outlet.drain()
    assert raw.getvalue().decode("ascii").endswith(" end\n")


SCRIPT = """
import sys, time
from rich.console import Console
from altgrad.text.terminal_output import unstoppable_output
told = []
with unstoppable_output(told.append):
    console = Console()
    for number in range(200):
        console.print(f"line {number} \\u2013 \\u250f")
    while sys.argv[2] != "[]" and not told:  # a reader that ends may take a while
        console.print("more")
        time.sleep(0.005)
open(sys.argv[1], "w").write(f"reached the end, told {told}")
"""


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("{python} -c '{script}' {out} | head -1", "['BrokenPipeError']"),
        ("{python} -c '{script}' {out} 2>&1 | head -1", "['BrokenPipeError']"),
        ("PYTHONIOENCODING=ascii {python} -c '{script}' {out} | cat", "[]"),
        ("{python} -c '{script}' {out} >&-", "['it is closed']"),
        ("{python} -c '{script}' {out} <&- >&- 2>&-", "['it is closed']"),
        ("{python} -c '{script}' {out} >/dev/full", "['OSError']"),
    ],
    ids=["head", "head of both", "ascii", "closed", "all closed", "full"],
)
def test_a_program_comes_to_its_end_with_its_own_exit_code(command: str, told: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = SCRIPT.replace("\\u", "\\\\u").replace("\\\\u", "\\u")
    line = command.format(python=sys.executable, script=script, out=f"{out} {shlex.quote(told)}")
    done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert out.read_text() == f"reached the end, told {told}"
    assert b"Error" not in done.stderr


def test_one_line_is_one() -> None:
    assert one_line(" a\n b\t\x1bc ") == "a b \\x1bc"

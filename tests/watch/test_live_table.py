"""The live table at the width of a terminal: what matters stays in sight, and no number is cut off."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from altgrad.show.live_table import LiveRow, LiveTable, progress_line

REASON = "stalled at step 12000: 99.7 % of the weights did not move over 500 steps in a row"
NEWEST = {"loss": 3.0625, "gap_to_baseline": 0.4375, "stall_rate": 0.997, "overflow_rate": 0.015625}
ROWS = [
    LiveRow("bf16_seed0", "BF16", "running", 12345, 20000, {"loss": 2.125}, is_baseline=True, eta=4000.0),
    LiveRow("e7m0_uniform_stored_stochastic_update_lr3e-4_seed0", "E7M0", "collapsed", 12000, 20000, NEWEST, REASON),
    LiveRow("e4m3_seed0", "E4M3", "running", 7, 20000, {"loss": math.nan, "gap_to_baseline": math.nan}, is_silent=True),
    LiveRow("e5m2_seed0", "E5M2", "waiting", 0, 20000, {}),
]


def printed(table: LiveTable, width: int) -> str:
    text = io.StringIO()
    Console(file=text, force_terminal=True, width=width, color_system=None, legacy_windows=False).print(table)
    return text.getvalue()


def cells_of(text: str) -> dict[str, list[str]]:
    """By heading the texts of the table's cells, with a cell that was folded over several lines as one."""
    lines = [line for line in text.splitlines() if line[0] in "┃│"]
    head = [cell.strip() for cell in lines[0].strip("┃").split("┃")]
    rows: list[list[list[str]]] = []
    for line in lines[1:]:
        pieces = [cell.strip() for cell in line.strip("│").split("│")]
        if pieces[head.index("Step")]:
            rows.append([[] for _ in head])
        for cell, piece in zip(rows[-1], pieces, strict=True):
            cell += [piece] if piece else []
    return {name: [("" if name == "Run" else " ").join(row[index]) for row in rows] for index, name in enumerate(head)}


@pytest.mark.parametrize("width", [64, 80, 100, 120, 160, 240])
def test_run_step_loss_status_and_reason_are_whole_at_every_width(width: int) -> None:
    text = printed(LiveTable(ROWS), width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines()) and "…" not in text
    cells = cells_of(text)
    assert cells["Run"] == [row.run for row in ROWS]
    assert cells["Step"] == ["12345/20000", "12000/20000", "7/20000", "0/20000"]
    assert cells["Loss"] == ["2.125", "3.062", "NaN", "–"]
    assert cells["Status"] == ["running", f"collapsed: {REASON}", "running, silent", "waiting"]


def test_a_wide_terminal_shows_every_column_and_a_narrow_one_leaves_out_what_matters_least() -> None:
    wide = cells_of(printed(LiveTable(ROWS), 300))
    assert list(wide) == ["Run", "Format", "Step", "Loss", "Training vs BF16", "Stalled", "Overflow", "Status", "ETA"]
    assert wide["Training vs BF16"] == ["baseline", "+0.438", "NaN", "–"]
    assert wide["Stalled"][1] == "99.7 %" and wide["Overflow"][1] == "1.56 %"
    assert wide["ETA"] == ["1 h 6 min", "–", "–", "–"]
    for width in range(300, 60, -1):
        heads = set(cells_of(printed(LiveTable(ROWS), width)))
        assert heads <= set(wide) and {"Run", "Step", "Loss", "Status"} <= heads
        wide = {head: wide[head] for head in wide if head in heads}  # what is left out stays left out


@pytest.mark.parametrize("lines", [1, 2, 5, 9])
def test_a_low_terminal_shows_the_most_important_rows_in_their_order(lines: int) -> None:
    rows = [*ROWS, *(LiveRow(f"more{i}", "E4M3", "failed", i, 20000, {}, "lost its node " * 60) for i in range(20))]
    importance = [2, 0, *range(3, len(rows)), 1]
    text = printed(LiveTable(rows, lines, importance), 80)
    assert text.count("\n") <= lines + 5  # three lines of frame, the headings and the caption
    assert "e4m3_seed0" in text and ("bf16_seed0" in text) == (lines > 1)
    assert lines == 1 or text.index("bf16_seed0") < text.index("e4m3_seed0")
    assert "20 failed, 2 running, 1 collapsed, 1 waiting" in text  # of all runs


def test_a_log_gets_the_same_words_and_cells() -> None:
    assert progress_line(ROWS[1]) == (
        "12000/20000  loss 3.062  training vs BF16 +0.438  stalled 99.7 %  overflow 1.56 %  ETA –"
    )

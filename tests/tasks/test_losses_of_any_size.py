"""A loss in a unit whose size says nothing is shown with the digits that it has, on every way to the screen."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from altgrad.commands.known_folder import expect
from altgrad.compare import comparison, comparison_markdown, comparison_table, paired_gap, rate_lines, rates_markdown
from altgrad.compare.comparison_table import gap_text, notes_of
from altgrad.compare.parity.pairs import group_difference
from altgrad.compare.rates import rates_note
from altgrad.experiment.training_progress import _loss
from altgrad.html import html_report
from altgrad.html.board import BoardRun, group_board, run_board
from altgrad.results import list_runs
from altgrad.show.live_table import LiveRow, LiveTable
from altgrad.show.sweep_progress import best_sentence
from altgrad.show.sweep_status import sweep_state
from altgrad.storage.folder import Folder
from altgrad.text.number_text import difference, interval_text
from dashboard.data.sweep_frame import COLUMNS, columns_in
from tests.support.commands import altgrad
from tests.support.results.written_runs import row, write_run

NAN = float("nan")
GAP = 3.25e-9  # 0.7 % of a loss of 4.7e-7


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.12654, "nats", "+0.1265"),
        (-1e-9, "nats", "-0.0000"),
        (GAP, "mse", "+3.25e-9"),
        (-GAP, "", "-3.25e-9"),
        (1234.5678, "mse", "+1235"),
        (-4e11, "mse", "-4e11"),
        (0.0, "mse", "+0"),
        (float("nan"), "mse", "NaN"),
        (float("-inf"), "nats", "-inf"),
    ],
)
def test_a_difference_has_decimals_in_nats_and_digits_elsewhere(value: float, unit: str, said: str) -> None:
    assert difference(value, unit) == said


def test_every_text_of_a_gap_has_its_digits() -> None:
    rows = [row(seed, GAP, loss_unit="mse") for seed in range(3)]
    assert gap_text(rows[0]) == "+3.25e-9"
    found = paired_gap(rows)
    assert (found.figure or "").startswith("+3.25e-9 [") and found.sentence.startswith("+3.25e-9 mse [")
    assert interval_text(-GAP, 2 * GAP, "mse") == " [-3.25e-9, +6.5e-9]"
    assert "0.000" not in (found.figure or "") + found.sentence


def test_rates_and_pairs_of_groups_too(tmp_path: Path) -> None:
    for place, fmt in enumerate(("BF16", "E4M3")):
        for rate in (1e-3, 2e-3):
            write_run(
                Folder.at(tmp_path), f"{fmt}-{rate:g}", {100: 4.7e-7 + place * GAP + rate * 1e-9},
                config={"format": fmt, "learning_rate": rate}, info={"unit": "squared error"},
            )  # fmt: skip
    rows = comparison(list_runs(Folder.at(tmp_path))[0])
    assert {line.cells[-1] for line in rate_lines(rows)} == {"–", "+3.25e-9"}
    assert "5 % of the loss" in rates_note(rows) and "0.1 squared" not in (rates_markdown(rows) or "0.1 squared")
    one, other = ([one for one in rows if one.format == fmt and one.learning_rate == 1e-3] for fmt in ("E4M3", "BF16"))
    assert "+3.25e-9 squared error at step 100" in group_difference(one, other).sentence


def test_the_live_table_too(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    sweep.write_json("sweep.json", {"schema": 1, "runs": [{"run": "a", "config": {"format": "E4M3", "max_steps": 9}}]})
    write_run(
        sweep,
        "a",
        {9: 1.0},
        config={"format": "E4M3"},
        info={"unit": "mse"},
        gap_to_baseline={9: GAP},
        loss={9: 4.7e-7},
    )
    [state] = sweep_state(sweep)
    assert state.loss_unit == "mse"
    for found in (state, LiveRow("a", "E4M3", "running", 9, 9, {"gap_to_baseline": GAP}, loss_unit="mse")):
        assert "+3.25e-9" in _text(LiveTable([found], None))


def _text(table: Any) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_table_of_the_dashboard_too() -> None:
    def shapes(unit: str) -> list[str]:
        found = columns_in(unit)
        assert found.keys() == COLUMNS.keys() and all(found[name]["help"] == COLUMNS[name]["help"] for name in found)
        return [
            found[name]["type_config"]["format"] % GAP for name in ("loss", "best_validation_loss", "gap", "gap_low")
        ]

    assert shapes("mse") == ["3.25e-09", "3.25e-09", "+3.25e-09", "+3.25e-09"]
    assert shapes("nats") == ["0.0000", "0.0000", "+0.0000", "+0.0000"]


def test_a_page_without_a_gap_speaks_of_no_scale_of_gaps(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path)
    for fmt in ("BF16", "E4M3"):
        write_run(sweep, fmt, {9: 4.7e-7}, config={"format": fmt}, info={"unit": "mse"}, status="collapsed")
    rows = comparison(list_runs(sweep)[0])
    assert "Bars:" not in group_board(rows, {}, lambda row: None)
    assert "Gaps on one" not in run_board([BoardRun(row) for row in rows], {})
    assert best_sentence(rows).startswith("No gap can be computed: ")
    assert "Bars: 95 %" in group_board([row(0, GAP, loss_unit="mse")], {}, lambda row: None)


def test_a_comparison_without_held_out_data_says_why_there_is_no_gap(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path / "s")
    for fmt in ("BF16", "E4M3"):
        write_run(sweep, fmt, {}, config={"format": fmt}, info={"unit": "mse"}, loss={9: 0.5})
    rows = comparison(list_runs(sweep)[0])
    said = "No run has a validation loss, so there is no gap to compare"
    assert (
        said in comparison_markdown(rows) and said in _text(comparison_table(rows)) and said in html_report(sweep, 0.0)
    )
    write_run(sweep, "E5M2", {9: 0.5}, config={"format": "E5M2"}, info={"unit": "mse"})
    assert notes_of(comparison(list_runs(sweep)[0])) == []
    assert notes_of([row(0, None, status="running")]) == []


def test_a_sweep_folder_is_suggested_only_where_there_is_one(tmp_path: Path) -> None:
    run = Folder.at(tmp_path / "s" / "run")
    run.write_json("run.json", {})
    with pytest.raises(FileNotFoundError, match=r"give a sweep folder; this run is of no sweep$"):
        expect(run, "sweep.json")
    run.parent.write_json("sweep.json", {})
    with pytest.raises(FileNotFoundError, match=f"give a sweep folder, such as {re.escape(str(run.parent))}$"):
        expect(run, "sweep.json")


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(2.41516, "nats", "2.4152"), (8e-6, "nats", "8e-6"), (NAN, "nats", "NaN"), (410343.5, "mse", "410344")],
)
def test_the_loss_of_a_training_run_is_never_shown_as_zero(value: float, unit: str, said: str) -> None:
    assert _loss(value, unit) == said


def test_altgrad_train_too(tmp_path: Path) -> None:
    (tmp_path / "tiny_loss.py").write_text(
        "import torch\n"
        "class task:\n"
        "    unit = 'mse'\n"
        "    def model(self, config): return torch.nn.Linear(4, 1)\n"
        "    def loss(self, model, batch): return 1e-9 * model(batch).square().mean(), {'done': 1.0, 'status': 2.0}\n"
        "    def data(self, config, split): return lambda step: torch.ones(3, 4) * step\n"
    )
    words = ["--task", "tiny_loss:task", "--out", "out", "--set", "max_steps=4", "eval_batches=1", "compile=false"]
    done = altgrad("train", "bf16_baseline", *words, cwd=tmp_path)
    assert done.returncode == 0 and "e-" in done.stdout.split("validation loss")[1], done.stdout + done.stderr
    assert "0.0000" not in done.stdout

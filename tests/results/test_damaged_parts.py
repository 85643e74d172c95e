"""A part that is not what was written: noticed, named with its run on every screen, left out; never another number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altgrad.__main__ import main
from altgrad.compare import comparison
from altgrad.html import write_html_report
from altgrad.results import SCHEMAS, RunWriter, TableName, list_runs, read_rows, write_end
from altgrad.results.part_file import encoded, read_part
from altgrad.results.reading.run import missing_steps
from altgrad.storage.folder import Folder
from dashboard.data.run_tables import RunTables
from dashboard.data.watched_sweep import WatchedSweep
from tests.support.results import generated_results as generated

ROWS = 7


def invented(name: TableName) -> pa.Table:
    """Rows with a value in every column."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "step": range(1, ROWS + 1), "attempt": [0] * ROWS, "layer": ["a", "b"] * 3 + ["a"], "site": ["weight"] * ROWS,
        "kind": ["clip"] * ROWS, "detail": ['{"limit": 1.0}'] * ROWS,
    }  # fmt: skip
    for field in SCHEMAS[name]:
        if field.name not in made:
            inner = field.type.value_type if pa.types.is_list(field.type) else field.type
            draw = rng.random if pa.types.is_floating(inner) else (lambda n: rng.integers(0, 99, n))
            made[field.name] = [draw(3).tolist() for _ in range(ROWS)] if inner != field.type else draw(ROWS)
    return pa.table({field.name: pa.array(made[field.name], field.type) for field in SCHEMAS[name]})


@pytest.mark.parametrize(("name", "every"), [("steps", 119), ("layers", 61), ("events", 7), ("tensors", 13)])
def test_each_flipped_bit_is_noticed_or_changes_nothing(name: TableName, every: int, tmp_path: Path) -> None:
    table, folder = invented(name), Folder.at(tmp_path)
    content, noticed, tried = encoded(name, table), 0, range(0, 8 * len(encoded(name, table)), every)
    for bit in tried:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        folder.write_bytes(f"{name}/part-000-000000.parquet", bytes(flipped))
        found = read_part(folder, name, "part-000-000000.parquet", table.column_names)
        assert isinstance(found, str) or found.equals(table), f"bit {bit} of {8 * len(content)}"
        noticed += isinstance(found, str)
    assert noticed > len(tried) / 2
    folder.write_bytes(f"{name}/part-000-000000.parquet", content)
    whole = read_part(folder, name, "part-000-000000.parquet", table.column_names)
    assert not isinstance(whole, str) and whole.equals(table)


def test_other_programs_read_a_sealed_part_and_an_older_part_has_no_seal(tmp_path: Path) -> None:
    table, folder = invented("steps"), Folder.at(tmp_path)
    folder.write_bytes("steps/part-000-000000.parquet", encoded("steps", table))
    assert pq.read_table(tmp_path / "steps" / "part-000-000000.parquet", page_checksum_verification=True).equals(table)
    pq.write_table(table, tmp_path / "steps" / "part-000-000001.parquet", compression="zstd")
    old = read_part(folder, "steps", "part-000-000001.parquet", ["step", "loss"])
    assert not isinstance(old, str) and old.equals(table.select(["step", "loss"]))


def _as(column: str, kind: pa.DataType, values: list[Any] | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        array = table[column].cast(kind) if values is None else pa.array(values, kind)
        return table.set_column(table.column_names.index(column), column, array)

    return change


DAMAGED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "loss as text": _as("loss", pa.string()),
    "loss as lists": _as("loss", pa.list_(pa.float64()), [[1.0]] * ROWS),
    "loss as times": _as("loss", pa.timestamp("s"), [1] * ROWS),
    "loss as booleans": _as("loss", pa.bool_(), [True] * ROWS),
    "step as text": _as("step", pa.string()),
    "step with gaps": _as("step", pa.int64(), [1, None] * 3 + [7]),
    "no step": lambda table: table.drop_columns("step"),
    "no attempt": lambda table: table.drop_columns("attempt"),
    "foreign": lambda table: pa.table({"a": [1], "b": ["x"]}),
    "loss twice": lambda table: table.append_column("loss", table["loss"]),
    "step beyond 64 bits": _as("step", pa.uint64(), [2**64 - 1] * ROWS),
}
SAME: dict[str, Callable[[pa.Table], pa.Table]] = {
    "step of 32 bits": _as("step", pa.int32()),
    "attempt of 64 bits": _as("attempt", pa.int64()),
    "a column not measured": lambda table: table.drop_columns("stable_rank"),
    "a column of nulls": _as("stable_rank", pa.null(), [None] * ROWS),
    "a column of a later version": lambda table: table.append_column("later", table["loss"]),
}


@pytest.fixture
def sweep(tmp_path: Path) -> Folder:
    sweep = generated.new_sweep(tmp_path, "s")
    runs = [generated.InventedRun(name, seed=1, steps=20, eval_interval=10) for name in ("BF16", "E4M3")]  # type: ignore[arg-type]
    for run in runs:
        generated.write_run(sweep, run)
    plan = [{"run": run.name, "config": run.config.model_dump()} for run in runs]
    sweep.write_json("sweep.json", {"schema": 1, "runs": plan})
    return sweep


def written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("what", [*DAMAGED, "cut in the footer", "cut to nothing", "no parquet"])
def test_a_later_part_that_is_wrong_is_named_on_every_screen_and_the_rest_is_shown(
    what: str, sweep: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = invented("steps")
    if what in DAMAGED:
        content = written(DAMAGED[what](table))
    else:
        content = {"cut in the footer": encoded("steps", table)[:-100], "cut to nothing": b"", "no parquet": b"a" * 99}[
            what
        ]
    run = sweep / "e4m3_lr0.0006_s1"
    run.write_bytes("steps/part-001-000000.parquet", content)
    rows, broken = read_rows(run, "steps")
    assert rows["step"].to_pylist() == list(range(1, 21)) and list(broken) == ["part-001-000000.parquet"]
    for arguments in (["status", str(sweep)], ["report", str(sweep)]):
        assert main(arguments) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert "part-001-000000.parquetisleftout" in shown and "bf16_lr0.0006_s1" in shown, arguments
    write_html_report(sweep, str(tmp_path / "page.html"))
    assert "part-001-000000.parquet" in (tmp_path / "page.html").read_text()
    watched = WatchedSweep(sweep)
    watched.refresh()
    assert len(comparison(watched.runs)) == 2
    assert [list(one.tables.broken_parts()) for one in watched.runs] == [[], ["steps/part-001-000000.parquet"]]
    runs, _ = list_runs(sweep)
    comparison(runs)
    assert [len(one.damage_sentences()) for one in runs] == [0, 1] and run.name in runs[1].damage_sentences()[0]


def test_a_part_that_is_gone_is_named_by_its_steps_on_every_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = generated.new_sweep(tmp_path, "s")
    for name in ("BF16", "E4M3"):
        run = generated.InventedRun(name, seed=1, steps=40, eval_interval=10)
        folder = sweep / run.name
        writer = RunWriter(folder, flush_seconds=1e9)
        writer.start(run.info("s"))
        for first in (1, 11, 21, 31):
            for row in run.rows(first, first + 9):
                writer.step(row)
            writer.flush()
        write_end(folder, "completed", None, {})
    (lost,) = (info for info in (folder / "steps").list() if info.base_name.endswith("000002.parquet"))
    (folder / "steps").delete(lost.base_name)
    for _ in range(2):
        runs, _ = list_runs(sweep)
        comparison(runs)
        assert [one.damage_sentences() for one in runs] == [
            [], [f"{folder.name}: no part has steps 21 to 30"]
        ]  # fmt: skip
    assert main(["report", str(sweep)]) == 0
    assert "steps 21 to 30" in capsys.readouterr().out
    watched = WatchedSweep(sweep)
    watched.refresh()
    comparison(watched.runs)
    assert [one.tables.missing_steps(one.begins_after) for one in watched.runs] == [[], ["steps 21 to 30"]]


def test_gaps_are_steps_of_a_run_that_records_every_step() -> None:
    def found(steps: list[int], begins_after: int = 0) -> list[str]:
        return missing_steps(pa.table({"step": steps}), begins_after)

    assert found([1, 2, 3, 4]) == found([100, 200, 300]) == found([]) == found([7]) == []
    assert found([3, 4, 5, 6]) == ["steps 1 to 2"] and found([3, 4, 5, 6], 2) == []
    assert found([1, 2, 3, 5, 6, 7, 20, 21]) == ["step 4", "steps 8 to 19"]


@pytest.mark.parametrize("what", SAME)
def test_a_part_that_says_the_same_in_another_way_is_read(what: str, tmp_path: Path) -> None:
    table, folder = invented("steps"), Folder.at(tmp_path)
    folder.write_bytes("steps/part-000-000000.parquet", written(SAME[what](table)))
    for rows in (read_rows(folder, "steps", ["loss"])[0], RunTables(folder).read("steps", ["loss"])):
        assert rows.equals(table.select(["step", "attempt", "loss"]))

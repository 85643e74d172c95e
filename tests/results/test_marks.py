"""Notes, stars, tags and hidden runs: a file that people may spoil, and that never costs anybody a run or a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altgrad.compare import by_group, comparison, group_difference, paired_gap, without_hidden
from altgrad.results import list_runs
from altgrad.results.marks import LONGEST_NOTE, MARKS, MOST_TAGS, Mark, read_marks, write_mark
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import COLLAPSED, HASHES, curve, write_run

STEPS = range(10, 101, 10)


def test_marks_are_read_as_they_were_written_and_change_one_run_at_a_time(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path)
    assert read_marks(sweep).by_run == {}
    mark = Mark("rerun\n<b>with</b> [x](http://evil.test)", True, ("paper", "ünlü"), True)
    write_mark(sweep, "a", mark)
    write_mark(sweep, "b", Mark(star=True))
    assert read_marks(sweep).by_run == {"a": mark, "b": Mark(star=True)}
    assert read_marks(sweep).hidden == {"a"}
    write_mark(sweep, "b", Mark())
    assert json.loads((tmp_path / MARKS).read_text())["runs"].keys() == {"a"}


@pytest.mark.parametrize(
    "content",
    [b"", b"  \n", b'{"schema": 1, "runs": {"a"', b"[1]", b"\xff\xfe", b'{"schema": 2, "runs": {}}', b'{"other": 1}'],
    ids=["empty", "blank", "half", "list", "binary", "newer", "foreign"],
)
def test_a_spoilt_file_is_no_mark_and_is_never_replaced_unless_it_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKS).write_bytes(content)
    sweep = Folder.at(tmp_path)
    found = read_marks(sweep)
    assert found.by_run == {}
    assert all(MARKS in said and "\n" not in said for said in found.damage)
    assert bool(found.damage) == bool(content.strip())
    if content.strip():
        with pytest.raises(ValueError, match=MARKS):
            write_mark(sweep, "a", Mark(star=True))
        assert (tmp_path / MARKS).read_bytes() == content
    else:
        write_mark(sweep, "a", Mark(star=True))
        assert read_marks(sweep).by_run == {"a": Mark(star=True)}


def test_an_entry_that_is_no_mark_costs_only_itself(tmp_path: Path) -> None:
    entries = {"a": 1, "b": {"tags": "x"}, "c": {"hidden": "yes"}, "d": {"star": True, "colour": "red"}}
    (tmp_path / MARKS).write_text(json.dumps({"schema": 1, "runs": entries, "own": 7}))
    found = read_marks(Folder.at(tmp_path))
    assert found.by_run == {"d": Mark(star=True)} and len(found.damage) == 3
    write_mark(Folder.at(tmp_path), "e", Mark(hidden=True))
    kept = json.loads((tmp_path / MARKS).read_text())
    assert kept["own"] == 7 and {name: kept["runs"][name] for name in entries} == entries


@pytest.mark.parametrize(
    "mark",
    [Mark("x" * (LONGEST_NOTE + 1)), Mark(tags=("",)), Mark(tags=("x" * 41,)), Mark(tags=("t",) * (MOST_TAGS + 1))],
)
def test_a_mark_that_is_too_long_is_refused_and_nothing_is_written(tmp_path: Path, mark: Mark) -> None:
    with pytest.raises(ValueError, match=r"characters|at most"):
        write_mark(Folder.at(tmp_path), "a", mark)
    assert not (tmp_path / MARKS).exists()


def test_hiding_a_run_changes_no_number_of_another_run(tmp_path: Path) -> None:
    """Each run in turn, the baselines and the collapsed one too; a group with a hidden run makes no claim."""
    sweep = Folder.at(tmp_path)
    for seed in (1, 2, 3):
        config = {"seed": seed, "max_steps": 100}
        for fmt, end in (("BF16", 2.0), ("E4M3", 2.05), ("E5M2", 2.3)):
            losses = curve(STEPS, end + 0.001 * seed)
            write_run(sweep, f"{fmt}-{seed}", losses, config=config | {"format": fmt}, info=HASHES)
    dead = curve(range(10, 41, 10), 4.0)
    config = {"seed": 4, "max_steps": 100, "format": "E5M2"}
    write_run(sweep, "E5M2-4", dead, config=config, status="collapsed", verdict=COLLAPSED, info=HASHES)
    rows = comparison(list_runs(sweep)[0])
    whole = {row.run: row for row in rows}
    for hidden in [*({name} for name in whole), {"BF16-1", "E4M3-2", "E5M2-4"}, {"E4M3-1", "E4M3-2", "E4M3-3"}]:
        shown = without_hidden(rows, hidden)
        assert [row.run for row in shown] == [row.run for row in rows if row.run not in hidden]
        groups = {whole[name].group for name in hidden}
        for row in shown:
            before = whole[row.run]
            assert row.gap == before.gap and row.baseline == before.baseline and row.step_loss == before.step_loss
            if row.group not in groups:
                assert row == before
        for members in by_group(shown).values():
            gap = paired_gap(members)
            if members[0].group in groups and gap.parity is not None and not members[0].is_baseline:
                assert gap.parity.verdict == "no claim" and "hidden" in gap.parity.sentence
    assert without_hidden(rows, set()) == rows
    one, other = (members for members in by_group(rows).values() if members[0].format in ("E4M3", "E5M2"))
    assert group_difference(one, other).parity.verdict != "no claim"
    assert group_difference(one, other, hidden=2).parity.sentence == "no claim: 2 runs are hidden"

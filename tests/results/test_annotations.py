"""Notes, stars, tags and hidden runs: a file that people may spoil, and that never costs anybody a run or a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altgrad.__main__ import main
from altgrad.compare import (
    Shown,
    by_group,
    comparison,
    group_difference,
    paired_gap,
    rate_lines,
    rescue_matrix,
    shown_rows,
    write_comparison,
)
from altgrad.html import html_report
from altgrad.results import list_runs
from altgrad.results.annotations import (
    ANNOTATIONS,
    LONGEST_NOTE,
    MOST_TAGS,
    Annotation,
    read_annotations,
    write_annotation,
)
from altgrad.storage.folder import Folder
from tests.support.results.written_runs import COLLAPSED, HASHES, curve, write_run

STEPS = range(10, 101, 10)


def test_annotations_are_read_as_they_were_written_and_change_one_run_at_a_time(tmp_path: Path) -> None:
    sweep = Folder.at(tmp_path)
    assert read_annotations(sweep).by_run == {}
    annotation = Annotation("rerun\n<b>with</b> [x](http://evil.test)", True, ("paper", "ünlü"), True)
    write_annotation(sweep, "a", annotation)
    write_annotation(sweep, "b", Annotation(star=True))
    assert read_annotations(sweep).by_run == {"a": annotation, "b": Annotation(star=True)}
    assert read_annotations(sweep).hidden == {"a"}
    write_annotation(sweep, "b", Annotation())
    assert json.loads((tmp_path / ANNOTATIONS).read_text())["runs"].keys() == {"a"}


@pytest.mark.parametrize(
    "content",
    [b"", b"  \n", b'{"schema": 1, "runs": {"a"', b"[1]", b"\xff\xfe", b'{"schema": 2, "runs": {}}', b'{"other": 1}'],
    ids=["empty", "blank", "half", "list", "binary", "newer", "foreign"],
)
def test_a_spoilt_file_is_no_annotation_and_is_never_replaced_unless_it_is_empty(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / ANNOTATIONS).write_bytes(content)
    sweep = Folder.at(tmp_path)
    found = read_annotations(sweep)
    assert found.by_run == {}
    assert all(ANNOTATIONS in said and "\n" not in said for said in found.damage)
    assert bool(found.damage) == bool(content.strip())
    if content.strip():
        with pytest.raises(ValueError, match=ANNOTATIONS):
            write_annotation(sweep, "a", Annotation(star=True))
        assert (tmp_path / ANNOTATIONS).read_bytes() == content
    else:
        write_annotation(sweep, "a", Annotation(star=True))
        assert read_annotations(sweep).by_run == {"a": Annotation(star=True)}


def test_an_entry_that_is_no_annotation_costs_only_itself(tmp_path: Path) -> None:
    entries = {"a": 1, "b": {"tags": "x"}, "c": {"hidden": "yes"}, "d": {"star": True, "colour": "red"}}
    (tmp_path / ANNOTATIONS).write_text(json.dumps({"schema": 1, "runs": entries, "own": 7}))
    found = read_annotations(Folder.at(tmp_path))
    assert found.by_run == {"d": Annotation(star=True)} and len(found.damage) == 3
    write_annotation(Folder.at(tmp_path), "e", Annotation(hidden=True))
    kept = json.loads((tmp_path / ANNOTATIONS).read_text())
    assert kept["own"] == 7 and {name: kept["runs"][name] for name in entries} == entries


@pytest.mark.parametrize(
    "annotation",
    [
        Annotation("x" * (LONGEST_NOTE + 1)),
        Annotation(tags=("",)),
        Annotation(tags=("x" * 41,)),
        Annotation(tags=("t",) * (MOST_TAGS + 1)),
    ],
)
def test_an_annotation_that_is_too_long_is_refused_and_nothing_is_written(
    tmp_path: Path, annotation: Annotation
) -> None:
    with pytest.raises(ValueError, match=r"characters|at most"):
        write_annotation(Folder.at(tmp_path), "a", annotation)
    assert not (tmp_path / ANNOTATIONS).exists()


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
        shown = Shown(rows, hidden).rows
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
    assert Shown(rows).rows == rows and not Shown(rows, {"of another sweep"}).notes
    one, other = (members for members in by_group(rows).values() if members[0].format in ("E4M3", "E5M2"))
    assert group_difference(other, one).parity.verdict == "collapsed", "E5M2 has died"
    left = by_group(Shown(rows, {one[0].run, other[0].run}).rows)
    assert group_difference(left[one[0].group], left[other[0].group]).parity.sentence == "no claim: 2 runs are hidden"


@pytest.fixture
def two_rates(tmp_path: Path) -> Folder:
    """BF16 and E4M3 at two rates with three seeds; a fourth seed of E4M3 died at the smaller rate."""
    sweep = Folder.at(tmp_path / "rates")
    sweep.write_json("sweep.json", {"schema": 1, "runs": []})
    for rate, worse in ((3e-4, 0.0), (1e-3, 0.2)):
        for seed in (1, 2, 3):
            config = {"seed": seed, "max_steps": 100, "learning_rate": rate}
            for fmt, end in (("BF16", 2.0), ("E4M3", 2.003)):
                losses = curve(STEPS, end + worse * (1.5 if fmt == "E4M3" else 1) + 0.0001 * seed)
                write_run(sweep, f"{fmt}-{rate}-{seed}", losses, config=config | {"format": fmt}, info=HASHES)
    config = {"seed": 4, "max_steps": 100, "learning_rate": 3e-4, "format": "E4M3"}
    write_run(sweep, "dead", curve((10, 20), 4.0), config=config, status="collapsed", verdict=COLLAPSED, info=HASHES)
    return sweep


def test_every_document_leaves_a_hidden_run_out_says_so_and_makes_no_claim_without_it(
    two_rates: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that died is hidden: otherwise E4M3 would be equivalent to BF16, or all of its runs would survive."""

    def documents(*more: str) -> dict[str, str]:
        texts = {}
        for command in (["compare"], ["report"], ["compare", "--groups", "E4M3-0.0003-1", "BF16-0.0003-1"]):
            assert main([command[0], two_rates.path, *command[1:], *more]) == 0
            texts[" ".join(command)] = capsys.readouterr().out
        everything = bool(more)
        shown = shown_rows(two_rates, comparison(list_runs(two_rates)[0]), everything)
        write_comparison(two_rates, shown)
        texts["comparison.md"] = two_rates.read_bytes("comparison.md").decode()
        texts["html"] = html_report(two_rates, 0.0, with_hidden=everything)
        return {name: " ".join(text.replace("\\", "").split()) for name, text in texts.items()}

    before = documents()
    write_annotation(two_rates, "dead", Annotation(hidden=True))
    after, counted = documents(), documents("--with-hidden")
    for name, text in after.items():
        assert "1 run is hidden and left out: dead." in text and "--with-hidden" in text, name
        assert "1 run is hidden" not in before[name] + counted[name], name
        assert "no claim" in text and "equivalent to BF16 within 0.01" not in text, name  # `compare` wraps its cells
    assert all("no claim: 1 run is hidden" in text for name, text in after.items() if name != "compare")
    assert after["report"].startswith("# Sweep: rates 13 runs: 12 completed, 1 collapsed.")
    assert "3 of 3 (+1 hidden)" in after["html"]
    records = two_rates.read_bytes("comparison.csv").decode().splitlines()
    assert [line.startswith("dead,") for line in records].count(True) == 1
    write_comparison(two_rates, shown_rows(two_rates, comparison(list_runs(two_rates)[0])))
    hidden = [line for line in two_rates.read_bytes("comparison.csv").decode().splitlines() if line.endswith(",hidden")]
    assert [line.split(",")[0] for line in hidden] == ["run", "dead"]


def test_hiding_moves_no_best_learning_rate_and_no_count_of_survivors(two_rates: Folder) -> None:
    rows = comparison(list_runs(two_rates)[0])
    whole = {line.name: line for line in rate_lines(rows)}
    best = {row.run for row in rows if row.is_baseline and row.learning_rate == 3e-4}
    found = {line.name: line for line in rate_lines(rows, best)}
    assert found["E4M3"] == whole["E4M3"], "the gap at the best rate of BF16 stays that"
    assert found["BF16"].cells[2] == "no claim: 3 runs are hidden" and found["BF16"].losses == whole["BF16"].losses
    assert [line.name for line in rate_lines(rows, {row.run for row in rows if row.format == "BF16"})] == ["E4M3"]
    cells = rescue_matrix(Shown(rows, {"dead"}).rows)
    assert [cell.lines[0] for key, cell in cells.items() if key[0] == "E4M3"] == ["3 of 3 (+1 hidden)", "3 of 3"]


def test_a_group_of_which_all_runs_are_hidden_is_not_compared_and_how_to_count_it_is_said(
    two_rates: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in comparison(list_runs(two_rates)[0]):
        if row.format == "E4M3":
            write_annotation(two_rates, row.run, Annotation(hidden=True))
    command = ["compare", two_rates.path, "--groups", "dead", "BF16-0.0003-1"]
    assert main(command) == 2
    assert "all runs of 'dead' are hidden; --with-hidden counts them" in capsys.readouterr().err
    assert main([*command, "--with-hidden"]) == 0
    assert main(["compare", two_rates.path]) == 0
    assert "7 runs are hidden and left out: " in (said := " ".join(capsys.readouterr().out.split())) and "more." in said

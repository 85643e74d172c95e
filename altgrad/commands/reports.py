"""`altgrad report` and `altgrad compare`: what a run or a sweep has found, from its folder alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from altgrad.commands.known_folder import expect, wide_console
from altgrad.commands.option_parser import Commands, examples, location, positive, word
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import harmless, say

if TYPE_CHECKING:
    from altgrad.compare import Shown, Terms

MARGIN_HELP = (
    "difference in loss that does not matter, for the parity verdicts (default: that of the sweep, else 0.01 nats, or "
    "0.5 %% of a loss that is no cross-entropy)"
)


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
    _add_report(commands)
    _add_compare(commands)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="rebuild a failure report, or a sweep's report, from its folder alone",
        description="Print why a run collapsed, or what a sweep found.  Only the folder is read, on any machine that "
        "sees it.",
        epilog=examples("report results/s1/e7m0-s42", "report results/s1 --html --out s1.html"),
    )
    report.add_argument("folder", type=location, help="run folder or sweep folder (local path or URI)")
    report.add_argument("--html", action="store_true", help="a sweep as one self-contained HTML file")
    report.add_argument(
        "--out", type=location, metavar="FILE", help="where to write the HTML; default: report.html in the sweep folder"
    )
    _add_terms(report)
    report.set_defaults(command=_report)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="the comparison of a sweep, of two of its groups, or with another sweep",
        description="Print how far each run is behind BF16, and which groups are as good; or the difference of any "
        "two groups, paired by seed; or for each group what became of it in another sweep.",
        epilog=examples(
            "compare results/s1",
            "compare results/s1 --groups 'E4M3 stored' E4M3",
            "compare results/s2 --against results/s1",
        ),
    )
    compare.add_argument("folder", type=location, help="sweep folder (local path or URI)")
    compare.add_argument(
        "--groups", nargs=2, type=word, metavar="GROUP", help="two groups, by label, such as 'E4M3 stored', or by a run"
    )
    compare.add_argument("--against", type=location, metavar="SWEEP_DIR", help="another sweep, group by group")
    _add_terms(compare)
    compare.set_defaults(command=_compare)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--margin", type=positive, metavar="LOSS", help=MARGIN_HELP)
    parser.add_argument("--with-hidden", action="store_true", help="count the runs hidden on the dashboard, too")


def _report(options: argparse.Namespace) -> int:
    from altgrad.report import sweep_report, write_failure_report

    folder = Folder.at(options.folder)
    if options.html:
        return _html(folder, options)
    if options.out:
        raise ValueError(f"--out {options.out}: only with --html; without it the report is printed")
    if expect(folder, "run.json", "sweep.json") == "run.json":
        print(harmless(write_failure_report(folder)))
    else:
        print(harmless(sweep_report(folder, options.margin, options.with_hidden)))
    return 0


def _html(sweep: Folder, options: argparse.Namespace) -> int:
    from altgrad.html import write_html_report

    try:
        expect(sweep, "sweep.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --html needs a sweep folder") from error
    print(harmless(write_html_report(sweep, options.out, options.margin, options.with_hidden)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from altgrad.compare import comparison_table, parity_table, planned_terms

    if options.groups is not None and options.against is not None:
        raise ValueError("--groups compares two groups of one sweep, --against two sweeps; give one of them")
    folder = Folder.at(options.folder)
    expect(folder, "sweep.json")
    terms, console = planned_terms(folder, options.margin), wide_console()
    shown = _shown(folder, terms, options.with_hidden, console)
    if options.against is not None:
        _against(shown, folder, terms, options, console)
    elif options.groups is not None:
        say(console, _difference(shown, terms, options.groups))
    else:
        console.print(comparison_table(shown.rows))
        if (parity := parity_table(shown.rows)) is not None:
            console.print(parity)
    for note in shown.notes:
        say(console, note)
    return 0


def _shown(sweep: Folder, terms: Terms, with_hidden: bool, console: Console, whose: str = "") -> Shown:
    """The rows of a sweep; runs that cannot be read are named on the console, each after `whose`."""
    from altgrad.compare import comparison, shown_rows
    from altgrad.results import list_runs

    runs, broken = list_runs(sweep)
    shown = shown_rows(sweep, comparison(runs, terms), with_hidden)
    for name, reason in broken.items():
        say(console, f"{whose}cannot be read: {name}: {reason}")
    return shown


def _against(here: Shown, folder: Folder, terms: Terms, options: argparse.Namespace, console: Console) -> None:
    """Print each group of a sweep beside that of the sweep `--against`."""
    from altgrad.compare import sweeps_lines, sweeps_table

    other = Folder.at(options.against)
    expect(other, "sweep.json")
    there = _shown(other, terms, options.with_hidden, console, f"{other}: ")
    lines = sweeps_lines(here.rows, there.rows, terms)
    if not lines:
        raise ValueError(f"{folder} and --against {other} hold no run that can be compared")
    console.print(sweeps_table(lines, f"Here: {folder}; there: {other}"))
    for note in there.notes:
        say(console, f"there: {note}")


def _difference(shown: Shown, terms: Terms, groups: Sequence[str]) -> str:
    """The difference of two groups, in a sentence.  Raises ValueError for an unknown group, or the same one twice."""
    from altgrad.compare import group_difference

    one, other = (shown.group(name) for name in groups)
    if one[0].group == other[0].group:
        raise ValueError(f"--groups {' '.join(groups)}: the same group twice")
    return group_difference(one, other, terms).sentence

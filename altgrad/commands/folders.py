"""`altgrad report`, `compare`, `status` and `stop`: they read and write nothing but the folder of a run or a sweep."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

from rich.console import Console, Group
from rich.live import Live

from altgrad.commands.option_parser import Commands, examples, location, positive, word
from altgrad.commands.typed_command import program
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import cell, harmless, say

_STATUS_FRAME = 7  # lines of a screen besides the rows: headings and borders, the counts, the shell's prompt
_FILE_WIDTH = 100  # columns of a table at least, if it is not printed to a terminal
MARGIN_HELP = (
    "difference in loss that does not matter, for the parity verdicts (default: that of the sweep, else 0.01 nats, or "
    "0.5 %% of a loss that is no cross-entropy)"
)


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
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

    status = commands.add_parser(
        "status",
        help="the state of a sweep, from its folder alone",
        description="Show each run of a sweep with its step, loss, status and the reason for it, on any machine that "
        "sees the folder, while the sweep trains and afterwards.",
        epilog=examples("status results/s1", "status results/s1 --every 10"),
    )
    status.add_argument("folder", type=location, help="sweep folder (local path or URI)")
    status.add_argument("--every", type=positive, metavar="SECONDS", help="show it again until no run is running")
    status.add_argument("--all", action="store_true", help="show every run, also more than fit the terminal")
    status.set_defaults(command=_status)

    stop = commands.add_parser(
        "stop",
        help="ask a run, or all runs of a sweep, to stop at the next report, for good",
        description="Ask a run, or all runs of a sweep, to stop at the next report.  What it has written stays; a "
        "sweep that is resumed later does not train it further.",
        epilog=examples("stop results/s1/e7m0-s42 --reason 'loss went up'", "stop results/s1"),
    )
    stop.add_argument("folder", type=location, help="run folder or sweep folder (local path or URI)")
    stop.add_argument("--reason", default="", help="goes into the end records")
    stop.set_defaults(command=_stop)


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


def _compare(options: argparse.Namespace) -> int:
    from altgrad.compare import comparison, comparison_table, group_difference, parity_table, planned_terms, shown_rows
    from altgrad.results import list_runs

    folder = Folder.at(options.folder)
    expect(folder, "sweep.json")
    terms = planned_terms(folder, options.margin)
    runs, broken = list_runs(folder)
    shown = shown_rows(folder, comparison(runs, terms), options.with_hidden)
    console = _console()
    for name, reason in broken.items():
        say(console, f"cannot be read: {name}: {reason}")
    if options.groups is not None and options.against is not None:
        raise ValueError("--groups compares two groups of one sweep, --against two sweeps; give one of them")
    if options.against is not None:
        from altgrad.compare import sweeps_lines, sweeps_table

        against = Folder.at(options.against)
        expect(against, "sweep.json")
        others, unreadable = list_runs(against)
        theirs = shown_rows(against, comparison(others, terms), options.with_hidden)
        for name, reason in unreadable.items():
            say(console, f"{against}: cannot be read: {name}: {reason}")
        lines = sweeps_lines(shown.rows, theirs.rows, terms)
        if not lines:
            raise ValueError(f"{folder} and --against {against} hold no run that can be compared")
        console.print(sweeps_table(lines, f"Here: {folder}; there: {against}"))
        for note in theirs.notes:
            say(console, f"there: {note}")
    elif options.groups is not None:
        one, other = (shown.group(name) for name in options.groups)
        if one[0].group == other[0].group:
            raise ValueError(f"--groups {options.groups[0]} {options.groups[1]}: the same group twice")
        say(console, group_difference(one, other, terms).sentence)
    else:
        console.print(comparison_table(shown.rows))
        if (parity := parity_table(shown.rows)) is not None:
            console.print(parity)
    for note in shown.notes:
        say(console, note)
    return 0


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console


def _html(sweep: Folder, options: argparse.Namespace) -> int:
    from altgrad.html import write_html_report

    try:
        expect(sweep, "sweep.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --html needs a sweep folder") from error
    print(harmless(write_html_report(sweep, options.out, options.margin, options.with_hidden)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from altgrad.show.sweep_status import goes_on, status_table, sweep_state

    console = _console()
    folder = Folder.at(options.folder)
    expect(folder, "sweep.json")
    fits = console.is_terminal and not options.all
    in_place = fits and options.every is not None and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
        while True:
            states = sweep_state(folder)
            damage = [cell(sentence) for state in states for sentence in state.damage]
            lines = max(1, console.height - _STATUS_FRAME - len(damage)) if fits else None
            shown = Group(status_table(states, lines), *damage)
            if live is None:
                console.print(shown)
            else:
                live.update(shown, refresh=True)
            if options.every is None or not goes_on(folder, states):
                return 0
            time.sleep(options.every)


def _stop(options: argparse.Namespace) -> int:
    from altgrad.results.stop_request import request_stop

    folder = Folder.at(options.folder)
    expect(folder, "run.json", "sweep.json")
    what = request_stop(folder, options.reason)
    print(f"{harmless(folder)}: the {what} stops at its next report; `{program()} status` shows when")
    return 0


def expect(folder: Folder, *records: str) -> str:
    """The first of these records that a folder contains.  Raises FileNotFoundError with a suggestion if it has none."""
    for record in records:
        if folder.has(record):
            return record
    wanted = " or ".join(f"a {record.removesuffix('.json')} folder" for record in records)
    if folder.has("run.json"):
        around = f", such as {folder.parent}" if folder.parent.has("sweep.json") else "; this run is of no sweep"
        raise FileNotFoundError(f"{folder}: the folder of a run; give {wanted}{around}")
    sweeps = [info.base_name for info in folder.list() if (folder / info.base_name).has("sweep.json")]
    there = f", such as {folder / sweeps[0]}" if sweeps else ""
    missing = " nor ".join(records) if len(records) > 1 else f"no {records[0]}"
    raise FileNotFoundError(f"{folder}: {'neither ' if len(records) > 1 else ''}{missing} in it; give {wanted}{there}")

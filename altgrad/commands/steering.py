"""`altgrad status` and `altgrad stop`: how far a sweep is, and the request to end it or one of its runs."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

from rich.console import Group
from rich.live import Live

from altgrad.commands.known_folder import expect, wide_console
from altgrad.commands.option_parser import Commands, examples, location, positive
from altgrad.commands.typed_command import program
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import cell, harmless

_STATUS_FRAME = 7  # lines of a screen besides the rows: headings and borders, the counts, the shell's prompt


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
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


def _status(options: argparse.Namespace) -> int:
    from altgrad.show.sweep_status import goes_on, status_table, sweep_state

    console = wide_console()
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

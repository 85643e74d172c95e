"""The commands whose code is not part of the library: `sweep`, `explain` and `submit`, which use Ray, and `dashboard`.

In a clone their folders are beside the library.  A wheel has them, and the configs, below the library, so that no
packages called `tune` and `dashboard` are in site-packages, where they could hide others with these names.  In both
cases the command puts their root first on the module path of its own process.  The library imports neither of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from altgrad.commands.typed_command import program_command
from altgrad.config.shipped_configs import ROOT


@dataclass(frozen=True)
class Application:
    """A command that parses its own words: its help line, the extra that it needs, and the function that runs it."""

    help: str
    extra: str
    start: Callable[[Sequence[str]], int]


def _sweep(words: Sequence[str]) -> int:
    return int(_main_of("tune.sweep")(words))


def _explain(words: Sequence[str]) -> int:
    return int(_main_of("tune.explain")(words))


def _submit(words: Sequence[str]) -> int:
    return int(_main_of("tune.submit")(words))


def _main_of(module: str) -> Callable[[Sequence[str]], int]:
    sys.path.insert(0, str(ROOT))
    main: Callable[[Sequence[str]], int] = import_module(module).main
    return main


def _dashboard(words: Sequence[str]) -> NoReturn:
    """Replace this process by Streamlit, which finds the dashboard's packages through PYTHONPATH."""
    from altgrad.commands.option_parser import OneLineParser, examples, location  # the extra was checked before

    parser = OneLineParser(
        prog=program_command(),
        description="Show running and finished sweeps in a browser: overview, comparison, curves, failures, layers.",
        epilog="Options of Streamlit are passed on, written with =, such as --server.port=8502.\n\n"
        + examples("dashboard", "dashboard results/s1 --server.port=8502"),
    )
    parser.add_argument(
        "results", type=location, nargs="?", help="results root or sweep folder (default: $ALTGRAD_RESULTS, or results)"
    )
    parser.add_argument(
        "--read-only", action="store_true", help="nobody can stop runs, or note, star, tag and hide them, on the pages"
    )
    options, others = parser.parse_known_args(words)
    if wrong := [word for word in others if not (word.startswith("--") and "." in word.split("=")[0] and "=" in word)]:
        parser.error(f"unrecognized arguments: {wrong[0]}")
    own = [*([] if options.results is None else [options.results]), *(["--read-only"] if options.read_only else [])]
    shown = ["--", *own] if own else []
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard"), *others, *shown]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": path})


APPLICATIONS = {
    "sweep": Application("train a sweep of formats with Ray, and compare", "sweep", _sweep),
    "explain": Application("replay collapses with one thing healed at a time, and name the cause", "sweep", _explain),
    "submit": Application("run a sweep on a Ray cluster from here", "sweep", _submit),
    "dashboard": Application("show running and finished sweeps in a browser", "dashboard", _dashboard),
}

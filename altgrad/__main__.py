"""`altgrad COMMAND` and `python -m altgrad COMMAND`, which are the same: runs a command, reports an error in one line.

Each command imports its modules when it runs, so that `formats` and `report` do not wait for torch, and an installation
without some extra can still run the commands that do not need it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from altgrad import __version__
from altgrad.commands.applications import APPLICATIONS
from altgrad.commands.extras import MissingExtra, missing_extra, require
from altgrad.commands.typed_command import program, program_command

_EXIT_BAD_INPUT = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 if it succeeded, 1 if the run failed, 2 for bad input, 130: Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except MissingExtra as error:
        return _refused(str(error))
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        return _refused(missing)


def _run(words: Sequence[str]) -> int:
    if words and words[0] in APPLICATIONS:
        application = APPLICATIONS[words[0]]
        require(application.extra)
        return application.start(words[1:])
    from altgrad.text.error_hints import error_text
    from altgrad.text.terminal_output import harmless

    parser = command_parser()
    if not words:
        parser.print_help()
        return _EXIT_BAD_INPUT
    options = parser.parse_args(words)
    try:
        return int(options.command(options))
    except (ValueError, OSError) as error:
        return _refused(harmless(error_text(error)))


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from altgrad.commands import branch, judge, known_names, reports, steering, train
    from altgrad.commands.option_parser import OneLineParser

    parser = OneLineParser(
        prog=program(),
        description="Train the same model once per number format, catch the collapses and say why, compare with BF16.",
        epilog="`altgrad COMMAND --help` says what a command is for, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"altgrad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, application in APPLICATIONS.items():
        commands.add_parser(name, help=application.help, add_help=False)
    for module in (train, branch, reports, steering, judge, known_names):
        module.add(commands)
    return parser


def _refused(reason: str) -> int:
    print(f"{program_command()}: error: {reason}", file=sys.stderr)
    return _EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())

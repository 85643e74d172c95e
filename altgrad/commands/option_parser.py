"""Command lines: a parser whose errors are one line, and functions that convert words to values of options.

Each error names the accepted values.  Numbers are written as in config files (`yaml_text`): `6e-4` is a number, but
`1_000`, `nan` and `true` are not.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias

from altgrad.commands.web.webhook import check_address
from altgrad.storage.folder import check_location
from altgrad.text.error_hints import cut, did_you_mean, shown
from altgrad.text.path_text import check_path
from altgrad.text.yaml_text import NotYaml, parse_value

TASK_HELP = "what is trained: a shipped task, an installed one, or package.module:name (default: the built-in GPT)"
TASK_ARGUMENT_HELP = "set an argument of the task (repeatable)"
FROM_HELP = "weights to start from: RUN@STEP, RUN@last, a .safetensors or .pt file, or a folder with model.safetensors"
KEEP_HELP = (
    "with --from RUN@STEP: what is kept besides the weights: step (schedule and batches go on after it), moments (the "
    "optimizer's, and the place in the data)"
)
_LONGEST = 400  # characters of an error
_LARGEST = 2**53
_CHOICE = re.compile(r"invalid choice: (?P<word>.*) \(choose from (?P<known>.*)\)", re.DOTALL)


class _Paragraphs(argparse.HelpFormatter):
    """Wraps each line of a description by itself, except those that are indented: command lines."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the longest sub-command, whose indent argparse forgets: its help would be on a new line."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line[:1] == " " else textwrap.fill(line, width) for line in text.splitlines())


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage; it does not accept abbreviated options."""

    def __init__(self, **options: Any) -> None:
        usual: dict[str, Any] = {"allow_abbrev": False, "formatter_class": _Paragraphs}
        super().__init__(**(usual | options))

    def error(self, message: str) -> NoReturn:
        """Print the message on one line to stderr and exit with code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        if message.startswith("unrecognized") and unknown.startswith("--"):
            message = f"unrecognized arguments: {unknown}"
            message += did_you_mean(unknown, self._all_options()).replace("'", "") or "; see --help"
        elif choice := _CHOICE.search(message):
            message += did_you_mean(choice["word"].strip("'"), choice["known"].replace("'", "").split(", "))
        self.exit(2, f"{self.prog}: error: {cut(message, _LONGEST)}\n")

    def _all_options(self) -> list[str]:
        """The options of this parser and its sub-commands: argparse reports their unknown options at this parser."""
        commands = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        below = [parser for choices in commands for parser in choices.values()]
        return [*self._option_string_actions, *(name for parser in below for name in parser._option_string_actions)]


def examples(*words: str) -> str:
    """The end of a command's help: command lines as one types them, without the program's name."""
    return "\n".join(["examples:", *(f"  altgrad {line}" for line in words)])


Commands: TypeAlias = "argparse._SubParsersAction[OneLineParser]"  # what a command adds its parser to


def _refuses(check: Callable[[str], Any]) -> Callable[[str], str]:
    """An argparse type that returns the text unchanged if `check` accepts it."""

    def kind(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return kind


def _check_word(text: str) -> None:
    if not text.strip():
        raise ValueError(f"{shown(text)}: expected a name; leave the option out for its default")


path = _refuses(check_path)
location = _refuses(check_location)  # a path, or a URI of a store
word = _refuses(_check_word)
webhook = _refuses(check_address)


def count(text: str) -> int:
    """A whole number from 1.  Raises argparse.ArgumentTypeError for another word."""
    return _number(text, int, "a whole number from 1", lambda value: 1 <= value <= _LARGEST)


def count_or_auto(text: str) -> int | Literal["auto"]:
    """A whole number from 1, or the word auto.  Raises argparse.ArgumentTypeError for another word."""
    if text == "auto":
        return "auto"
    return int(_number(text, int, "a whole number from 1, or auto", lambda value: 1 <= value <= _LARGEST))


def count_or_zero(text: str) -> int:
    """A whole number from 0.  Raises argparse.ArgumentTypeError for another word."""
    return _number(text, int, "a whole number from 0", lambda value: 0 <= value <= _LARGEST)


def positive(text: str) -> float:
    """A number above 0.  Raises argparse.ArgumentTypeError for another word."""
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def positive_or_auto(text: str) -> float | Literal["auto"]:
    """A number above 0, or the word auto.  Raises argparse.ArgumentTypeError for another word."""
    if text == "auto":
        return "auto"
    return float(_number(text, float, "a number above 0, or auto", lambda value: 0 < value < float("inf")))


def not_negative(text: str) -> float:
    """A number from 0.  Raises argparse.ArgumentTypeError for another word."""
    return _number(text, float, "a number from 0", lambda value: 0 <= value < float("inf"))


def _number(text: str, kind: type, accepted: str, holds: Callable[[Any], bool]) -> Any:
    try:
        value = parse_value(text)
    except NotYaml:
        value = None
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not fits or not holds(value):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected {accepted}")
    return kind(value)

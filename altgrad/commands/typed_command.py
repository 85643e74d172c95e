"""The words of the command line that started this process, for messages with a command that a user can type.

The process is either a command of altgrad (`altgrad sweep`, `python -m altgrad sweep`) or a script
(`python tune/sweep.py`).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def typed_command() -> list[str]:
    """The words up to the first argument, such as `altgrad sweep` or `python tune/sweep.py`."""
    return [*_start(), *sys.argv[1 : _arguments_from()]]


def typed_arguments() -> list[str]:
    """The words after those of `typed_command`: the options and other arguments."""
    return sys.argv[_arguments_from() :]


def program() -> str:
    """The name of this program in help and error lines: `altgrad`, `python -m altgrad`, or a script's file name."""
    if not _is_altgrad():
        return Path(sys.argv[0]).name
    return "python -m altgrad" if _is_module() else "altgrad"


def program_command() -> str:
    """The name of this program with its sub-command, such as `altgrad sweep`; for a script its file name."""
    return " ".join([program(), *sys.argv[1 : _arguments_from()]])


def dashboard_command(results: str) -> str:
    """The command line that opens the dashboard on a results root, spelled as this process was started."""
    words = [*_start(), "dashboard"] if _is_altgrad() else ["streamlit", "run", "dashboard", "--"]
    return shlex.join([*words, results])


def _start() -> list[str]:
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    if _is_module():
        return [python, "-m", "altgrad"]
    if _is_altgrad():
        return ["altgrad" if shutil.which("altgrad") == sys.argv[0] else sys.argv[0]]
    return [python, sys.argv[0]]


def _arguments_from() -> int:
    return 2 if _is_altgrad() else 1


def _is_altgrad() -> bool:
    return _is_module() or Path(sys.argv[0]).name == "altgrad"


def _is_module() -> bool:
    """Whether Python was started with `-m altgrad`."""
    file = Path(sys.argv[0])
    return file.name == "__main__.py" and file.parent.name == "altgrad"

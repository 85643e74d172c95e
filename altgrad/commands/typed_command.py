"""How this process was started, in the words that a person would type to start it again.

`altgrad sweep` and `python -m altgrad sweep` are a command and its name; `python tune/sweep.py` is a script.
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
    """The words after those of `typed_command`."""
    return sys.argv[_arguments_from() :]


def program() -> str:
    """What help and error lines call this program: `altgrad`, `python -m altgrad`; for a script its file's name."""
    if not _is_altgrad():
        return Path(sys.argv[0]).name
    return "python -m altgrad" if _is_module() else "altgrad"


def program_command() -> str:
    """What they call it where it has commands: `altgrad sweep`; for a script its file's name."""
    return " ".join([program(), *sys.argv[1 : _arguments_from()]])


def dashboard_command(results: str) -> str:
    """The command line that shows a results root, in the way in which this process was started."""
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

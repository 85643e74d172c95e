"""Commands and programs as somebody starts them, in a process of its own that need not import torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.servers.polling import PATIENCE
from tests.support.processes import ROOT, become, process


def altgrad(*arguments: Any, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m altgrad`; `environment`: variables in addition to those of this process."""
    words = [str(ROOT / "altgrad" / "__main__.py"), *map(str, arguments)]
    return _ended(_command, words, cwd or Path.cwd(), environment)


def program(text: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -c TEXT`."""
    return _ended(_text, ["-c", text], cwd, environment)


def _ended(
    what: Callable[[Sequence[str]], None], words: list[str], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    variables = dict(os.environ) | environment
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place) / name for name in ("out", "err"))
        started = process(_run, what, words, cwd, variables, out, err)
        started.start()
        started.join(PATIENCE)
        assert started.exitcode is not None, f"{words} does not come to its end"
        return subprocess.CompletedProcess(words, started.exitcode, out.read_text(), err.read_text())


def _run(
    what: Callable[[Sequence[str]], None], words: list[str], cwd: Path, variables: dict[str, str], out: Path, err: Path
) -> None:
    """In the new process: become the program."""
    become(variables)
    os.chdir(cwd)
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = words
    what(words)


def _command(words: Sequence[str]) -> None:
    from altgrad.__main__ import main

    sys.exit(main())


def _text(words: Sequence[str]) -> None:
    exec(compile(words[-1], "program", "exec"), {"__name__": "__main__"})

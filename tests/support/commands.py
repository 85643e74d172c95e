"""`python -m altgrad` in a process of its own that need not import torch: it is forked from a server that has.

The server has imported what the commands import, and has run nothing: neither threads nor process-wide settings of
torch are there to be inherited.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.servers.polling import PATIENCE

ROOT = Path(__file__).parents[2]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["altgrad.__main__", "altgrad.experiment.runner", "torch._dynamo", __name__])


def altgrad(*arguments: Any, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command's exit code and output; `environment`: variables in addition to those of this process."""
    words = [str(ROOT / "altgrad" / "__main__.py"), *map(str, arguments)]
    variables = dict(os.environ) | environment
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place) / name for name in ("out", "err"))
        process = _SERVER.Process(target=_run, args=(words, cwd or Path.cwd(), variables, out, err))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"{words} does not come to its end"
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _run(words: list[str], cwd: Path, variables: dict[str, str], out: Path, err: Path) -> None:
    """In the new process: become the command."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = words
    from altgrad.__main__ import main

    sys.exit(main())

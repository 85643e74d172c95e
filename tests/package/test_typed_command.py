"""What help, error lines and commands to go on call the program: what was typed, by hand for each way to start it."""

from __future__ import annotations

import sys

import pytest

from altgrad.commands import typed_command
from altgrad.commands.typed_command import dashboard_command, program_command, typed_arguments
from tune.plan.options import parse_options

PYTHON = "/opt/venv/bin/python"


@pytest.mark.parametrize(
    ("argv", "on_path", "program", "command", "dashboard"),
    [
        (
            ["/opt/venv/bin/altgrad", "sweep", "--name", "a"],
            {"altgrad": "/opt/venv/bin/altgrad", "python": "/usr/bin/python"},
            "altgrad sweep", "altgrad sweep", "altgrad dashboard 'my results'",
        ),
        (
            ["/opt/venv/bin/altgrad", "sweep", "--name", "a"],
            {"altgrad": "/usr/bin/altgrad", "python": "/usr/bin/python"},
            "altgrad sweep", "/opt/venv/bin/altgrad sweep", "/opt/venv/bin/altgrad dashboard 'my results'",
        ),
        (
            ["/opt/venv/lib/site-packages/altgrad/__main__.py", "sweep", "--name", "a"],
            {"python": PYTHON},
            "python -m altgrad sweep", "python -m altgrad sweep", "python -m altgrad dashboard 'my results'",
        ),
        (
            ["tune/sweep.py", "--name", "a"],
            {},
            "sweep.py", f"{PYTHON} tune/sweep.py", "streamlit run dashboard -- 'my results'",
        ),
    ],
)  # fmt: skip
def test_a_program_is_called_what_was_typed(
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    on_path: dict[str, str],
    program: str,
    command: str,
    dashboard: str,
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "executable", PYTHON)
    monkeypatch.setattr(typed_command.shutil, "which", on_path.get)
    assert program_command() == program
    assert typed_arguments() == ["--name", "a"]
    assert dashboard_command("my results") == dashboard
    assert parse_options(["--name", "a"]).resume_command("a") == f"{command} --resume a --results results"

"""What an installation can do depends on its extras: `pip install altgrad` brings what rounding needs, no more.

This table says which modules each extra brings, so that what is missing is said in one line instead of a traceback.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from altgrad.commands.typed_command import program_command

_RESULTS = ("pyarrow", "rich", "markdown_it", "pynvml")
EXTRAS = {
    "results": _RESULTS,
    "sweep": (*_RESULTS, "ray", "pandas", "psutil"),
    "wandb": ("wandb",),
    "dashboard": (*_RESULTS, "streamlit", "plotly", "pandas", "scipy"),
}


class MissingExtra(ValueError):
    """An extra is not installed; the message is one line that says which, and how to get it."""


def require(extra: str) -> None:
    """Raises MissingExtra where a module of the extra is not installed."""
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise MissingExtra(_sentence(missing[0], extra))


def exit_without(extra: str) -> None:
    """End a script, before it imports anything of the extra, with one line where that is not installed."""
    try:
        require(extra)
    except MissingExtra as error:
        print(f"{program_command()}: error: {error}", file=sys.stderr)
        sys.exit(2)


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to install where an import failed for want of an extra, in one line; None where no extra would help."""
    module = (error.name or "").split(".")[0]
    return next((_sentence(module, extra) for extra, modules in EXTRAS.items() if module in modules), None)


def _sentence(module: str, extra: str) -> str:
    return f"needs the {extra} extra, {module} is not installed: pip install 'altgrad[{extra}]'"

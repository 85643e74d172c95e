"""The extras of an installation: `pip install altgrad` alone installs only the packages that rounding needs.

The table `EXTRAS` lists the modules of each extra, so that a missing module is reported in one line with the extra to
install, instead of a traceback.
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
    "dashboard": (*_RESULTS, "streamlit", "plotly", "matplotlib", "pandas", "scipy"),
}


class MissingExtra(ValueError):
    """An extra is not installed; the message is one line with its name and the command that installs it."""


def require(extra: str) -> None:
    """Raises MissingExtra if a module of the extra is not installed."""
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise MissingExtra(_sentence(missing[0], extra))


def exit_without(extra: str) -> None:
    """Exit with code 2 and one line if the extra is not installed; call it before importing its modules."""
    try:
        require(extra)
    except MissingExtra as error:
        print(f"{program_command()}: error: {error}", file=sys.stderr)
        sys.exit(2)


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The extra to install after a failed import, in one line; None if the module is not part of any extra."""
    module = (error.name or "").split(".")[0]
    return next((_sentence(module, extra) for extra, modules in EXTRAS.items() if module in modules), None)


def _sentence(module: str, extra: str) -> str:
    return f"needs the {extra} extra, {module} is not installed: pip install 'altgrad[{extra}]'"

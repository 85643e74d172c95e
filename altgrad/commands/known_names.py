"""`altgrad formats`, `recipes` and `config`: tables of the known names.  They do not import torch, which is slow."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from altgrad.commands.known_folder import wide_console
from altgrad.commands.option_parser import Commands, examples, path
from altgrad.config.published import published
from altgrad.format_relations import equal_up_to_scale
from altgrad.formats import GROUPS, NumberFormat, find_format
from altgrad.show import recipe_tables
from altgrad.show.config_fields import show_fields
from altgrad.text.fitted_table import FittedColumn, FittedTable

_TABLE_WIDTH = 110  # columns at least, if the output is not a terminal


def add(commands: Commands) -> None:
    """Add the commands to a parser."""
    formats = commands.add_parser(
        "formats",
        help="the table of number formats",
        description="Print the number formats that `format: NAME` accepts: their bits, range and special values.",
        epilog=examples("formats", "formats E4M3 E3M4b5"),
    )
    formats.add_argument(
        "names", nargs="*", metavar="NAME", help="registered or any E<e>M<m>[b<bias>]; default: all registered"
    )
    formats.set_defaults(command=_formats)

    recipes = commands.add_parser(
        "recipes",
        help="the published recipes: their operands' casts, sources, limits",
        description="Print the published recipes that `recipe: NAME` accepts: what each rounds and how, after which "
        "paper, and what differs from it here.",
        epilog=examples("recipes", "recipes mxfp8 nvfp4"),
    )
    recipes.add_argument("names", nargs="*", metavar="NAME", help="everything about these; default: a table of all")
    recipes.add_argument(
        "--markdown",
        type=path,
        nargs="?",
        const=".",
        metavar="DIR",
        help="rewrite docs/recipes.md in a clone (default: this folder)",
    )
    recipes.set_defaults(command=_recipes)

    config = commands.add_parser(
        "config",
        help="the config fields: default, meaning, accepted values",
        description="Print what a config file or --set may contain, by what it is for.",
        epilog=examples("config", "config learning_rate 'stalled_*'"),
    )
    config.add_argument("names", nargs="*", metavar="NAME", help="only these; a glob such as 'stalled_*' names several")
    config.set_defaults(command=_config)


# Headings, in the order of their importance.
_FORMAT_COLUMNS = (
    "format",
    "bits",
    "bias",
    "largest",
    "smallest",
    "smallest normal",
    "values",
    "not finite",
    "beyond",
)


def _formats(options: argparse.Namespace) -> int:
    groups = {"": tuple(map(find_format, options.names))} if options.names else GROUPS
    console = wide_console(_TABLE_WIDTH)
    rows = [_format_row(fmt) for formats in groups.values() for fmt in formats]
    columns = [FittedColumn(head, [row[place] for row in rows]) for place, head in enumerate(_FORMAT_COLUMNS)]
    sections = [(title, len(formats)) for title, formats in groups.items()]
    console.print(FittedTable(columns, sections=sections))
    scaleless = [fmt.name for formats in groups.values() for fmt in formats if not fmt.scaled]
    if scaleless:
        console.print(f"never scaled: {', '.join(scaleless)}")
    said: set[str] = set()
    for first, second, factor in equal_up_to_scale({fmt.name: fmt for formats in groups.values() for fmt in formats}):
        if first not in said:  # `first` was printed as a multiple of an earlier format, and so is `second`
            console.print(f"{second} is {first} x {factor:g}: under max-abs scaling they round alike, bit for bit")
            said.add(second)
    return 0


def _format_row(fmt: NumberFormat) -> list[str]:
    """Cells of `_FORMAT_COLUMNS`."""
    special = " ".join(name for name, has in (("inf", fmt.has_inf), ("NaN", fmt.has_nan)) if has)
    zero = "" if fmt.has_negative_zero else "no -0"
    return [
        fmt.name,
        str(fmt.bits),
        str(fmt.bias) if fmt.exponent_bits else "-",
        f"{fmt.max:.8g}" + ("" if fmt.lowest == -fmt.max else f" ({fmt.lowest:g})"),
        f"{fmt.min_subnormal:.6g}",
        "-" if fmt.min_normal is None else f"{fmt.min_normal:.6g}",
        f"{fmt.value_count:,}" if fmt.bits <= 16 else f"{fmt.value_count:.3g}",
        ", ".join(part for part in (special, zero) if part) or "-",
        "inf" if fmt.overflow == "inf" else "max",
    ]


def _recipes(options: argparse.Namespace) -> int:
    if options.markdown is not None:
        if options.names:
            raise ValueError(f"--markdown writes all recipes; leave {' '.join(options.names)} out")
        print(recipe_tables.write_markdown(Path(options.markdown)))
        return 0
    for name in options.names:
        published(name)  # an unknown name raises before anything is printed
    console = Console()
    for number, name in enumerate(options.names):
        if number:
            console.print()
        recipe_tables.show_recipe(console, name)
    if not options.names:
        recipe_tables.show_overview(console)
    return 0


def _config(options: argparse.Namespace) -> int:
    show_fields(Console(), options.names)
    return 0

"""The published recipes as text, for a terminal and for docs/recipes.md, all from the recipes' YAML files.

No torch: importing it would delay the tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from altgrad.config.operands import ALL_OPERANDS
from altgrad.config.optimizer_states import MOMENTS
from altgrad.config.phases import phases_text, start_text
from altgrad.config.published import ELEMENT_BITS, Published, published, published_names
from altgrad.config.recipe import Recipe
from altgrad.text.number_text import table

PAGE = Path("docs/recipes.md")
_NARROWEST = 60  # columns


def formats_of(recipe: Recipe) -> str:
    """The formats of the operands, in all phases, the most frequent first: `E4M3, E5M2, BF16`."""
    names = [cast.number_format.name for one in _phases(recipe) for cast in one.casts_at().values()]
    return ", ".join(sorted(dict.fromkeys(names), key=lambda name: -names.count(name)))


def stays_high(recipe: Recipe) -> str:
    """The operands, layers and blocks that the recipe does not round to 8 bits or fewer, before its first phase."""
    casts = recipe.casts_at()
    wide = [str(operand) for operand in ALL_OPERANDS if casts[operand].number_format.bits > ELEMENT_BITS]
    said = [f"all six operands in {formats_of(recipe.in_phase(0))}"] if len(wide) == len(ALL_OPERANDS) else wide
    said += [f"layers {glob} in {name}" for glob, name in recipe.layer_formats.items()]
    for share, which in ((recipe.high_first_blocks, "first"), (recipe.high_last_blocks, "last")):
        if share:
            said.append(f"the {which} {f'{share:.0%}' if share < 1 else f'{share:g}'} of the blocks in BF16")
    return ", ".join(said) or "nothing among the linear layers"


def weights_and_optimizer(recipe: Recipe) -> str:
    """How the weights and the optimizer's moments are stored between steps, in words."""
    if recipe.master_weights:
        weights = "FP32 master weights"
    else:
        weights = f"weights on the grid of {recipe.format_at('', 'weight')}, written back {recipe.update_rounding}"
    moments = recipe.moment_casts()
    if not moments:
        return f"{weights}, FP32 moments"
    return f"{weights}, " + ", ".join(f"{m.replace('_', ' ')} {moments.get(m, 'FP32')}" for m in MOMENTS)


def show_overview(console: Console) -> None:
    """Print a table of all recipes."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("name", "recipe", "formats", "source"):
        shown.add_column(head, overflow="fold", no_wrap=head == "name")
    for name in published_names():
        shown.add_row(name, published(name).title, formats_of(Recipe(recipe=name)), published(name).source)
    console.print(shown)


def show_recipe(console: Console, name: str) -> None:
    """Print everything about one recipe.  Raises ValueError for an unknown one."""
    found, recipe = published(name), Recipe(recipe=name)
    width = max(console.width, _NARROWEST)

    def say(text: str, first: str = "", rest: str = "") -> None:
        lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest)
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)

    say(f"{name}: {found.title}")
    say(found.summary)
    heads, rows = _cast_table(recipe)
    shown = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        shown.add_row(*row)
    console.print("", shown, "", sep="\n")
    for head, text in _facts(found, recipe):
        say(text, f"{head}: ", "  ")
    for head, sentences in (("exact", found.exact), ("differs", found.differs)):
        say(f"{head}:")
        for sentence in sentences:
            say(sentence, "- ", "  ")


def overview() -> str:
    """The recipes as a markdown table: name, formats, source."""
    rows = [
        (f"[`{name}`](#{name})", formats_of(Recipe(recipe=name)), published(name).source) for name in published_names()
    ]
    return table(("recipe", "formats", "source"), rows, "lll")


def page() -> str:
    """The content of docs/recipes.md."""
    parts = [
        "# Published recipes",
        "A recipe is the set of all numeric settings of a run. Published recipes have names: `recipe: nvfp4` in a "
        "config, or `--recipes nvfp4` of a sweep; each is a file in `altgrad/config/recipes/`. The fields of a "
        "config override those of its recipe, in `gemms` also single leaves (`gemms: {wgrad: {gradient: {rounding: "
        "nearest}}}`); a field that contradicts the recipe, or has no effect, is refused. `run.json` has the name "
        "and every field. `phases` is a schedule: from a step, or a share of the run, on the GEMMs have other casts "
        "(`phases: [{from_share: 0.9, gemms: {fprop: {format: BF16}}}]`).",
        "The casts below are those of the six operands of a linear layer's GEMMs: format, values that share a scale "
        "(along what the GEMM contracts), and what is not the default: a power-of-two scale from the current amax "
        "that keeps it in range, rounding to nearest, no rotation. A dimension that a block, a tile or a rotation "
        "does not divide is padded with zeros, as hardware pads, and the result is cut to its size. "
        "Of each recipe the page says what is exact here, and what differs (accumulators, saved activations, "
        "communication).",
        "This page is written by `altgrad recipes --markdown`.",
        overview(),
    ]
    for name in published_names():
        found, recipe = published(name), Recipe(recipe=name)
        heads, rows = _cast_table(recipe)
        casts = table(heads, [(f"`{operand}`", *casts) for operand, *casts in rows], "l" * len(heads))
        parts += [f"## {name}", f"{found.title}. {found.summary}", casts]
        parts.append(_bullets(f"{head}: {text}" for head, text in _facts(found, recipe)))
        parts += ["Exact:", _bullets(found.exact), "Different:", _bullets(found.differs)]
    return "\n\n".join(parts) + "\n"


def write_markdown(folder: Path) -> Path:
    """Rewrite docs/recipes.md in a working tree; returns its path.  Raises FileNotFoundError without a folder docs."""
    file = folder / PAGE
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: no such folder; --markdown takes the root of a clone")
    file.write_text(page(), encoding="utf-8")
    return file


def _phases(recipe: Recipe) -> list[Recipe]:
    return [recipe.in_phase(number) for number in range(len(recipe.phases) + 1)]


def _cast_table(recipe: Recipe) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of the operands and their casts, with a column for each phase of the schedule."""
    casts = [one.casts_at() for one in _phases(recipe)]
    rows = [[str(operand), *(str(of_phase[operand]) for of_phase in casts)] for operand in ALL_OPERANDS]
    return ["operand", "cast", *(start_text(phase) for phase in recipe.phases)], rows


def _facts(found: Published, recipe: Recipe) -> list[tuple[str, str]]:
    scheduled = [("schedule", phases_text(recipe.phases))] if recipe.phases else []
    also = [("also rounded", "attention's products Q K^T and P V")] if recipe.attention_gemms else []
    return [
        ("stays high", stays_high(recipe)),
        *also,
        *scheduled,
        ("weights and optimizer", weights_and_optimizer(recipe)),
        ("source", found.source),
    ]


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)

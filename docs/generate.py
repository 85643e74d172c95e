"""Writes what the documentation takes from the code: `python docs/generate.py`; a test fails where a page is older.

A page holds pairs of marks, `<!-- NAME -->` and `<!-- end of NAME -->`; what stands between them is written from the
tables of the code: config fields, formats, metrics, kinds of events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from altgrad.config.interventions import INTERVENTIONS, PATTERNS, intervention_fields
from altgrad.config.train_config import TrainConfig
from altgrad.events import EVENTS
from altgrad.formats import GROUPS, NumberFormat
from altgrad.metrics import METRICS
from altgrad.show.config_fields import as_yaml, fields_by_kind

DOCS = Path(__file__).parent
# Which fields are a rule's thresholds: those whose names begin so.
_RULES = ("non_finite", "diverged", "never_learned", "no_context", "stalled", "rank_collapse", "gap")
_EVERY = {"step": "every step", "report": "every report (10 steps in a sweep)"}


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; what a cell may hold is escaped."""
    heads = list(headings)
    lines = [heads, ["---"] * len(heads), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def config_fields() -> str:
    """Every field of a config, by its kind."""
    parts = []
    for title, fields in fields_by_kind():
        rows = ((f"`{row.name}`", f"`{row.default}`", " or ".join(row.values), row.meaning) for row in fields)
        parts += [f"## {title}", table(("field", "default", "values", "meaning"), rows)]
    return "\n\n".join(parts)


def thresholds() -> str:
    """The fields that each collapse rule reads, with their defaults."""
    names = TrainConfig.where(lambda trait: trait.kind == "judging")
    rows = []
    for rule in _RULES:
        for name in (name for name in TrainConfig.model_fields if name in names and name.startswith(f"{rule}_")):
            info = TrainConfig.model_fields[name]
            label = "gap_to_baseline" if rule == "gap" else rule
            rows.append((f"`{label}`", f"`{name}`", f"{info.default:g}", info.description or ""))
    return table(("rule", "field", "default", "meaning"), rows)


def interventions() -> str:
    """What each name of an intervention sets."""
    examples = (("to-FORMAT", "to-E5M2"), ("to-FORMAT-OPERAND", "to-BF16-wgrad"))
    assert tuple(name for name, _ in examples) == PATTERNS
    named = [(f"`{name}`", fields) for name, fields in INTERVENTIONS.items()]
    named += [(f"`{name}`, such as `{example}`", intervention_fields(example)) for name, example in examples]
    rows = (
        (name, ", ".join(f"`{field}: {as_yaml(value)}`" for field, value in fields.items()) or "nothing")
        for name, fields in named
    )
    return table(("name", "sets"), rows)


def measures() -> str:
    """Every metric, with when it is measured and what switches it on."""
    rows = []
    for metric in METRICS.values():
        every = _EVERY.get(metric.every, f"every `{metric.every}` steps")
        needs = [f"`{metric.switch}`"] if metric.switch else []
        needs += ["a baseline"] if metric.needs_baseline else []
        rows.append((f"`{metric.name}`", metric.unit, metric.meaning, every, ", ".join(needs)))
    return table(("name", "unit", "meaning", "when", "needs"), rows)


def events() -> str:
    """Every kind of event."""
    rows = ((f"`{kind.name}`", kind.meaning, "yes" if kind.is_act else "") for kind in EVENTS.values())
    return table(("kind", "meaning", "an act of an intervention"), rows)


def formats() -> str:
    """Every registered format with its numbers, by group."""
    headings = (
        "name",
        "bits",
        "bias",
        "largest",
        "smallest normal",
        "smallest",
        "infinity",
        "NaN",
        "beyond the largest",
    )
    return "\n\n".join(f"### {title}\n\n{table(headings, map(_format_row, group))}" for title, group in GROUPS.items())


def _format_row(fmt: NumberFormat) -> tuple[str, ...]:
    return (
        f"`{fmt.name}`",
        str(fmt.bits),
        str(fmt.bias) if fmt.exponent_bits else "-",
        f"{fmt.max:.8g}" + ("" if fmt.lowest == -fmt.max else f" (down to {fmt.lowest:g})"),
        "-" if fmt.min_normal is None else f"{fmt.min_normal:.6g}",
        f"{fmt.min_subnormal:.6g}",
        "yes" if fmt.has_inf else "",
        "yes" if fmt.has_nan else "",
        "infinity" if fmt.overflow == "inf" else "saturates",
    )


BLOCKS: Mapping[str, Callable[[], str]] = {
    "config fields": config_fields,
    "thresholds": thresholds,
    "interventions": interventions,
    "measures": measures,
    "events": events,
    "formats": formats,
}


def written(page: str) -> str:
    """A page with the blocks between its marks written anew.  Raises KeyError for a mark that no block has."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n\n{BLOCKS[name]()}\n\n<!-- end of {name} -->"

    return re.sub(r"<!-- (?P<name>[a-z ]+) -->\n.*?<!-- end of (?P=name) -->", block, page, flags=re.DOTALL)


def main() -> None:
    """Write every page of the documentation that holds marks."""
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text()
        after = written(before)
        if after != before:
            path.write_text(after)
            print(path.relative_to(DOCS))


if __name__ == "__main__":
    main()

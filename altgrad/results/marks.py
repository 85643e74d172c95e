"""What people noted about the runs of a sweep: `marks.json` in the sweep's folder, never in the data of a run.

    {"schema": 1, "runs": {"e4m3-s1": {"note": "rerun with warm-up", "star": true, "tags": ["paper"], "hidden": false}}}

Several viewers may write it; the last one to save a mark of a run counts.  The file belongs to people: they may empty
it, edit it, or put another one in its place.  A reader then has fewer marks and a sentence about it, and a writer never
replaces a file that it does not understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.storage.folder import Folder

MARKS = "marks.json"
LONGEST_NOTE, LONGEST_TAG, MOST_TAGS = 2000, 40, 20
_SCHEMA = 1


@dataclass(frozen=True)
class Mark:
    """A note, a star and tags of one run; a `hidden` run is left out of comparisons and charts on screens."""

    note: str = ""
    star: bool = False
    tags: tuple[str, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Marks:
    """The marks of a sweep by run name.  `damage`: a sentence for each thing in the file that is no mark."""

    by_run: Mapping[str, Mark]
    damage: tuple[str, ...] = ()

    @property
    def hidden(self) -> frozenset[str]:
        """Names of the hidden runs, also of runs that the sweep no longer has."""
        return frozenset(name for name, mark in self.by_run.items() if mark.hidden)


def read_marks(sweep: Folder) -> Marks:
    """The marks of a sweep; what is no mark is left out and said.  Raises OSError if storage refuses."""
    try:
        content = _content(sweep)
    except ValueError as error:
        return Marks({}, (str(error),))
    found, damage = {}, []
    for name, entry in content["runs"].items():
        try:
            found[name] = _mark(entry)
        except ValueError as error:
            damage.append(f"{sweep / MARKS}: of run {name[:100]!r}: {error}")
    return Marks(found, tuple(damage))


def write_mark(sweep: Folder, run: str, mark: Mark) -> None:
    """Save the mark of one run; those of the others stay as they are.

    Raises ValueError if the mark is too long, or the file is not ours; OSError if storage refuses.
    """
    if len(mark.note) > LONGEST_NOTE:
        raise ValueError(f"note: {len(mark.note)} characters; at most {LONGEST_NOTE}")
    if len(mark.tags) > MOST_TAGS:
        raise ValueError(f"tags: {len(mark.tags)}; at most {MOST_TAGS}")
    if wrong := [tag for tag in mark.tags if not tag.strip() or len(tag) > LONGEST_TAG]:
        raise ValueError(f"tag {wrong[0][:60]!r}: from 1 to {LONGEST_TAG} characters")
    content = _content(sweep)
    runs = dict(content["runs"])
    if mark == Mark():
        runs.pop(run, None)
    else:
        runs[run] = {"note": mark.note, "star": mark.star, "tags": list(mark.tags), "hidden": mark.hidden}
    sweep.write_json(MARKS, {**content, "runs": runs})


def _content(sweep: Folder) -> dict[str, Any]:
    """The content of the file; without a file, or with an empty one, that of a new one.  Raises ValueError."""
    empty = {"schema": _SCHEMA, "runs": {}}
    try:
        if not sweep.read_bytes(MARKS, at_most=2**24).strip():
            return empty
        content = sweep.read_json(MARKS)
    except FileNotFoundError:
        return empty
    if content.get("schema") != _SCHEMA or not isinstance(content.get("runs"), dict):
        raise ValueError(
            f"{sweep / MARKS}: expected schema {_SCHEMA} and runs by name; move the file away to set marks"
        )
    return content


def _mark(entry: Any) -> Mark:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    note, tags = entry.get("note", ""), entry.get("tags", [])
    star, hidden = entry.get("star", False), entry.get("hidden", False)
    if not isinstance(note, str) or not isinstance(star, bool) or not isinstance(hidden, bool):
        raise ValueError("note must be a text, star and hidden true or false")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags must be a list of texts")
    return Mark(note, star, tuple(tags), hidden)

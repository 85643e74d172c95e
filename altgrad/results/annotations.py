"""What people noted about the runs of a sweep: `annotations.json` in the sweep's folder, never in the data of a run.

    {"schema": 1, "runs": {"e4m3-s1": {"note": "rerun with warm-up", "star": true, "tags": ["paper"], "hidden": false}}}

Several viewers may write it; what the last one saved about a run counts.  The file belongs to people: they may empty
it, edit it, or put another one in its place.  A reader then has fewer annotations and a sentence about it, and a writer
never replaces a file that it does not understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.storage.folder import Folder

ANNOTATIONS = "annotations.json"
LONGEST_NOTE, LONGEST_TAG, MOST_TAGS = 2000, 40, 20
_SCHEMA = 1


@dataclass(frozen=True)
class Annotation:
    """A note, a star and tags of one run; a `hidden` run is left out of comparisons and charts on screens."""

    note: str = ""
    star: bool = False
    tags: tuple[str, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Annotations:
    """The annotations of a sweep by run name.  `damage`: a sentence for each entry of the file that is none."""

    by_run: Mapping[str, Annotation]
    damage: tuple[str, ...] = ()

    @property
    def hidden(self) -> frozenset[str]:
        """Names of the hidden runs, also of runs that the sweep no longer has."""
        return frozenset(name for name, annotation in self.by_run.items() if annotation.hidden)


def read_annotations(sweep: Folder) -> Annotations:
    """The annotations of a sweep; what is no annotation is left out and said.  Raises OSError if storage refuses."""
    try:
        content = _content(sweep)
    except ValueError as error:
        return Annotations({}, (str(error),))
    found, damage = {}, []
    for name, entry in content["runs"].items():
        try:
            found[name] = _annotation(entry)
        except ValueError as error:
            damage.append(f"{sweep / ANNOTATIONS}: of run {name[:100]!r}: {error}")
    return Annotations(found, tuple(damage))


def write_annotation(sweep: Folder, run: str, annotation: Annotation) -> None:
    """Save the annotation of one run; those of the others stay as they are.

    Raises ValueError if the annotation is too long, or the file is not ours; OSError if storage refuses.
    """
    if len(annotation.note) > LONGEST_NOTE:
        raise ValueError(f"note: {len(annotation.note)} characters; at most {LONGEST_NOTE}")
    if len(annotation.tags) > MOST_TAGS:
        raise ValueError(f"tags: {len(annotation.tags)}; at most {MOST_TAGS}")
    if wrong := [tag for tag in annotation.tags if not tag.strip() or len(tag) > LONGEST_TAG]:
        raise ValueError(f"tag {wrong[0][:60]!r}: from 1 to {LONGEST_TAG} characters")
    content = _content(sweep)
    runs = dict(content["runs"])
    if annotation == Annotation():
        runs.pop(run, None)
    else:
        runs[run] = {
            "note": annotation.note,
            "star": annotation.star,
            "tags": list(annotation.tags),
            "hidden": annotation.hidden,
        }
    sweep.write_json(ANNOTATIONS, {**content, "runs": runs})


def _content(sweep: Folder) -> dict[str, Any]:
    """The content of the file; without a file, or with an empty one, that of a new one.  Raises ValueError."""
    empty = {"schema": _SCHEMA, "runs": {}}
    try:
        if not sweep.read_bytes(ANNOTATIONS, at_most=2**24).strip():
            return empty
        content = sweep.read_json(ANNOTATIONS)
    except FileNotFoundError:
        return empty
    if content.get("schema") != _SCHEMA or not isinstance(content.get("runs"), dict):
        raise ValueError(
            f"{sweep / ANNOTATIONS}: expected schema {_SCHEMA} and runs by name; move the file away to set annotations"
        )
    return content


def _annotation(entry: Any) -> Annotation:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {type(entry).__name__}")
    note, tags = entry.get("note", ""), entry.get("tags", [])
    star, hidden = entry.get("star", False), entry.get("hidden", False)
    if not isinstance(note, str) or not isinstance(star, bool) or not isinstance(hidden, bool):
        raise ValueError("note must be a text, star and hidden true or false")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags must be a list of texts")
    return Annotation(note, star, tuple(tags), hidden)

"""Names of checkpoint files, and which checkpoints of a run are kept.

A replay of a collapse starts at a checkpoint from before its first sign, which is known only after the verdict.  So a
run keeps its newest two checkpoints, from which it is restored, and of the older ones one per octave of age: aged 2 to
3 intervals, 4 to 7, 8 to 15, and 16 to 31.  A replay then starts less than four times as far back as it must, and a run
keeps at most six, however long it is.  Example, an interval of 100, at step 1000: 1000, 900, 800, 400 (ages 0, 1, 2
and 6).  A run that completes without a verdict keeps the newest two alone.
`keep_checkpoints: all` keeps all, for a trunk that is to be branched from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from altgrad.storage.folder import Folder

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{12})\.pt")
NEWEST = 2
_OLDEST_OCTAVE = 4  # ages of 16 to 31 intervals; older checkpoints are deleted


def checkpoint_files(folder: Folder) -> list[str]:
    """The names of the checkpoint files in a folder, newest step first."""
    return sorted((info.base_name for info in folder.list() if NAME.fullmatch(info.base_name)), reverse=True)


def step_of(name: str) -> int:
    """The step of a checkpoint file."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def checkpoint_steps(run: Folder) -> list[int]:
    """The steps of the checkpoints of a run that can be branched from, in ascending order."""
    return sorted({step_of(name) for name in checkpoint_files(run / "checkpoints")})


def checkpoint_named(source: str) -> tuple[Folder | None, int | None]:
    """(run, step) of RUN@STEP, as `start_from` takes it; (run, None) of RUN@last, (None, None) of anything else."""
    run, at, step = source.rpartition("@")
    if not at or not (step.isdigit() or step == "last"):
        return None, None
    return Folder.at(run), None if step == "last" else int(step)


def settled(source: str | None) -> str | None:
    """RUN@last with the step of the newest checkpoint, so that a restart means the same one; others unchanged."""
    run, step = checkpoint_named(source or "")
    steps = checkpoint_steps(run) if run is not None and step is None else []
    return f"{run}@{steps[-1]}" if steps else source


def kept(steps: Iterable[int], interval: int, how: str = "octaves") -> set[int]:
    """Those of the steps whose checkpoints stay; interval, how: `checkpoint_interval` and `keep_checkpoints`."""
    if how == "all":
        return set(steps)
    ordered = sorted(steps, reverse=True)
    stay = set(ordered[:NEWEST])
    for step in ordered[NEWEST:] if how == "octaves" else ():
        place, age = step // interval, ordered[0] // interval - step // interval
        octave = max(age, 1).bit_length() - 1
        if octave <= _OLDEST_OCTAVE and place % (1 << octave) == 0:
            stay.add(step)
    return stay

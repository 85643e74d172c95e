"""Checkpoints that are complete or absent, can be verified, and load without unpickling code.

The file name contains a digest of the content: a truncated or altered file is detected, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from altgrad.branch.checkpoints import NAME, checkpoint_files, kept, step_of
from altgrad.storage.folder import Folder

_LATER = {"climb", "forecast", "ahead", "course"}  # entries that older versions did not write
_GROWING = {
    "optimizer",
    "moments",
    "detector",
    "forecast",
    "gap",
    "course",
}  # entries whose own entries come with the steps


def save_checkpoint(folder: Folder, step: int, state: dict[str, Any]) -> str:
    """Write the checkpoint of a step and return its file name."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:12]}.pt"
    folder.write_bytes(name, content, durable=True)
    return name


def delete_old(folder: Folder, interval: int = 1, how: str = "octaves") -> None:
    """Delete the checkpoints that are not to be kept, see `branch.checkpoints.kept`."""
    names = checkpoint_files(folder)
    stay = kept(map(step_of, names), interval, how)
    for name in names:
        if step_of(name) not in stay:
            folder.delete(name)


class CheckpointError(ValueError):
    """A checkpoint that is whole, but not of this version, config or model; the message is one line."""


def check_content(found: Any, expected: Any, where: str = "checkpoint") -> None:
    """Raise CheckpointError where a state lacks an entry that this version needs, or has one that it does not know.

    `expected`: the state of the same run before its first step.  Moments, which the optimizer makes later, and what
    detector and ladder have seen of the loss are not compared.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{where}: expected entries by name, found {type(found).__name__}")
        lacking = [str(key) for key in expected.keys() - found.keys() - _LATER]
        unknown = [str(key) for key in found.keys() - expected.keys()]
        if lacking or unknown:
            said = [
                f"{what} {', '.join(sorted(keys)[:3])}" for what, keys in (("lacks", lacking), ("has", unknown)) if keys
            ]
            raise CheckpointError(f"{where}: {' and '.join(said)}")
        for key in (expected.keys() & found.keys()) - _GROWING:
            check_content(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise CheckpointError(f"{where}: expected {len(expected)} entries")
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_content(one, other, f"{where}.{number}")
    elif isinstance(expected, torch.Tensor) and getattr(found, "shape", None) != expected.shape:
        raise CheckpointError(f"{where}: expected a tensor of shape {tuple(expected.shape)}")


def load_checkpoint(folder: Folder, step: int | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """(newest state whose digest is right, or None; names of newer checkpoints that are corrupt).

    step: only the checkpoint of this step counts.
    """
    corrupt: list[str] = []
    for name in checkpoint_files(folder):
        if step is not None and step_of(name) != step:
            continue
        content = folder.read_bytes(name)
        match = NAME.fullmatch(name)
        if match is not None and hashlib.sha256(content).hexdigest()[:12] == match[2]:
            with suppress(pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError):  # no state of ours
                return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"), corrupt
        corrupt.append(name)
    return None, corrupt

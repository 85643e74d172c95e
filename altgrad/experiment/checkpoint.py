"""Checkpoints that are complete or absent, can be verified, and load without unpickling code.

The file name contains a digest of the content: a truncated or altered file is detected, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import torch

from altgrad.storage.folder import Folder

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{12})\.pt")
KEPT = 2


def save_checkpoint(folder: Folder, step: int, state: dict[str, Any]) -> str:
    """Write the checkpoint of a step, delete all but the newest `KEPT`, and return its file name."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:12]}.pt"
    folder.write_bytes(name, content, durable=True)
    for old in _names(folder)[KEPT:]:
        folder.delete(old)
    return name


def load_checkpoint(folder: Folder) -> tuple[dict[str, Any] | None, list[str]]:
    """(newest state whose digest is right, or None; names of newer checkpoints that are corrupt)."""
    corrupt: list[str] = []
    for name in _names(folder):
        content = folder.read_bytes(name)
        match = _NAME.fullmatch(name)
        if match is not None and hashlib.sha256(content).hexdigest()[:12] == match[2]:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"), corrupt
        corrupt.append(name)
    return None, corrupt


def _names(folder: Folder) -> list[str]:
    """Checkpoint files, newest step first."""
    return sorted((info.base_name for info in folder.list() if _NAME.fullmatch(info.base_name)), reverse=True)

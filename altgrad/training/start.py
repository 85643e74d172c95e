"""Where a trainer starts: on which device, with which weights, and alike on all ranks."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from altgrad.training.ranks import Ranks


def device_named(name: str) -> torch.device:
    """The device of a config; `auto` takes a GPU where there is one.  Raises ValueError where it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: no CUDA device here; use device=cpu or auto")
    return torch.device(name)


def hash_weights(model: nn.Module) -> str:
    """Hash of the parameters by name, before anything is rounded."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_alike(ranks: Ranks, device: torch.device, weights: str, batches: str) -> None:
    """Ranks must start from the same weights and batches (by their hashes).  Raises ValueError."""
    if ranks.alone:
        return
    if device.index is not None:
        raise ValueError(f"device='{device}' is one GPU; with several workers use device=cuda or auto")
    starts = ranks.of_all((weights, batches))
    for rank, start in enumerate(starts):
        if start != starts[0]:
            raise ValueError(f"rank {rank} has other initial weights or batches than rank 0; seed them alike")

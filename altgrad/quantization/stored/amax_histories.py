"""Amax histories of delayed scaling: what a step's roundings counted becomes what the next steps' scales read.

As long as a history is empty, a tensor's own amax counts, and a GPU must store the tensor until it is known.  From the
step on in which the last of a model's histories got an amax, the graphs of a GPU therefore are others, which round each
value where it is computed (bench/README.md has the bytes that this saves).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from altgrad import torch_private
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.model_state import SiteKey, Sites

_AMAX, _USES, _OVERFLOW = (COUNTERS.index(name) for name in ("amax", "uses", "overflow"))


def remember(sites: Sites, counts: Mapping[SiteKey, Tensor], only_wider: bool = False) -> None:
    """Put amaxes at the front of the histories of delayed scaling; that of an unused site does not change.

    A tensor of zeros, for which any scale would do, does not push the last amax out: no history is empty again.

    counts: (len(COUNTERS),) for each site.  only_wider: nor does that of a site without overflow, or whose amax is not
    above all that it remembers.
    """
    delayed = [key for key in counts if sites[key].delayed]
    for device in {counts[key].device for key in delayed}:
        keys = [key for key in delayed if counts[key].device == device]
        found = torch.stack([counts[key] for key in keys])
        kept = torch.stack([sites[key].history for key in keys])
        moved = torch.cat([found[:, _AMAX : _AMAX + 1], kept[:, :-1]], dim=1)
        moves = (found[:, _USES] > 0) & (moved.amax(dim=1) > 0)
        if only_wider:
            moves = moves & (found[:, _OVERFLOW] > 0) & (found[:, _AMAX] > kept.amax(dim=1))
        new = torch.where(moves[:, None], moved, kept)
        torch_private.copy_each([sites[key].history for key in keys], list(new.unbind()))


def note_filled(sites: Sites) -> bool:
    """Tell the sites of delayed scaling on a GPU whether all their histories hold an amax; returns this, True without
    such sites.

    All of them together, so that there are two graphs and no more; and by their histories alone, so that a run that
    was restored has the graphs that it had.  Waits for the device once.
    """
    delayed = [site for site in sites.values() if site.delayed and rounds_in_its_producer(site.history.device)]
    if not delayed:
        return True
    filled = bool(torch.stack([site.history.amax() for site in delayed]).amin() > 0)
    for site in delayed:
        site.note_filled(filled)
    return filled


def rounds_in_its_producer(device: torch.device) -> bool:
    """Whether compiled code rounds a value in the kernel that computes it; on a CPU a tensor is stored first."""
    return device.type not in ("cpu", "meta")

"""Amax histories of delayed scaling: what a step's roundings counted becomes what the next steps' scales read."""

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

    counts: (len(COUNTERS),) for each site.  only_wider: nor does that of a site without overflow, or whose amax is not
    above all that it remembers.
    """
    delayed = [key for key in counts if sites[key].delayed]
    for device in {counts[key].device for key in delayed}:
        keys = [key for key in delayed if counts[key].device == device]
        found = torch.stack([counts[key] for key in keys])
        kept = torch.stack([sites[key].history for key in keys])
        moved = torch.cat([found[:, _AMAX : _AMAX + 1], kept[:, :-1]], dim=1)
        moves = found[:, _USES] > 0
        if only_wider:
            moves = moves & (found[:, _OVERFLOW] > 0) & (found[:, _AMAX] > kept.amax(dim=1))
        new = torch.where(moves[:, None], moved, kept)
        torch_private.copy_each([sites[key].history for key in keys], list(new.unbind()))

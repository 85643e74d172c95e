"""Reads the rounding counts of all sites in one transfer per step, and computes rates and `layers` rows from them.

With several ranks one collective combines counts (sums), amax and scale (maxima) and the loss (mean), so that every
rank decides on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.config.operands import tensor_of
from altgrad.metrics import SiteName
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.ranks import Ranks
from altgrad.quantization.model_state import SiteKey
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.quantization.stored.write_back import WriteBack

LayerRow = dict[str, Any]
_USES = COUNTERS.index("uses")
_LARGEST = ("amax", "scale")  # combined over ranks by the maximum; the other counts are added


class SiteCounts:
    """Reads the counts of every site for the last forward and backward pass; a site that was not used is absent.

    `of_all_ranks`: the counts that were read last, as tensors.
    """

    def __init__(self, quantized: QuantizedModel, ranks: Ranks) -> None:
        self._quantized = quantized
        self._ranks = ranks
        self.of_all_ranks: Mapping[SiteKey, Tensor] = {}
        self._values: dict[SiteKey, list[float]] = {}
        self._maxima: dict[tuple[Any, ...], Tensor] = {}  # see `_combined_by_maximum`; a phase may have other sites

    def read(self, loss: Tensor, others: Tensor) -> tuple[float, list[float]]:
        """Read loss, `others` and all sites' counts in the step's one transfer to the host; return (loss, `others`).

        loss: 0-d, of this rank's rows; the mean over ranks is returned.  others: 1-d, the same on every rank.
        """
        used = self._quantized.counts()
        head = torch.cat([loss.float().reshape(1), others.float()])
        if not self._ranks.alone:
            head, used = self._over_ranks(head, used)
        self.of_all_ranks = used
        loss_value, *numbers = torch.cat([head, *used.values()]).tolist()
        self._values = {}
        for key, start in zip(used, range(len(others), len(numbers), len(COUNTERS)), strict=True):
            values = numbers[start : start + len(COUNTERS)]
            if values[_USES]:
                self._values[key] = values
        return loss_value, numbers[: len(others)]

    def _over_ranks(self, head: Tensor, used: Mapping[SiteKey, Tensor]) -> tuple[Tensor, dict[SiteKey, Tensor]]:
        """(loss and others, counts) of the global batch; a site that no rank used has zeros."""
        width, nothing = len(COUNTERS), head.new_zeros(len(COUNTERS))
        sites = self._quantized.site_keys()
        counts = [used.get(key, nothing) for key in sites]
        head = torch.cat([head[:1] / self._ranks.size, head[1:]])
        combined = self._ranks.combine(torch.cat([head, *counts]), self._combined_by_maximum(len(head), head.device))
        rows = combined[len(head) :].view(-1, width)
        return combined[: len(head)], dict(zip(sites, rows, strict=True))

    def _combined_by_maximum(self, head: int, device: torch.device) -> Tensor:
        """Which numbers of loss, others and counts are combined by their maximum (bool), kept from step to step.

        A copy from the host at each step would synchronise.
        """
        sites = self._quantized.site_keys()
        kept = (head, *sites)
        if kept not in self._maxima:
            largest = [False] + [True] * (head - 1)
            for _, site in sites:  # every rank rounds the whole weight: its counts are not added
                largest += [tensor_of(site) == "weight" or name in _LARGEST for name in COUNTERS]
            self._maxima[kept] = torch.tensor(largest, dtype=torch.bool, device=device)
        return self._maxima[kept]

    def rates(self, only: SiteName | None = None) -> dict[str, float]:
        """Overflow, underflow and saturation rates of the counts read last, over all sites.

        only: over the sites of this tensor alone.
        """
        values = [value for (_, site), value in self._values.items() if only in (None, tensor_of(site))]
        return _rates([sum(column) for column in zip(*values, strict=True)]) if values else {}

    def rows(
        self, step: int, diagnosed: Iterable[Mapping[str, Any]], write_back: WriteBack | None
    ) -> list[Mapping[str, Any]]:
        """Rows of the `layers` table: the rates of each site, joined with the diagnostics' values of that site."""
        rows: dict[tuple[str, str], LayerRow] = {}
        sites = list(self._values.items())
        if write_back is not None and write_back.counts:
            values = torch.stack(list(write_back.counts.values())).tolist()
            sites += [((name, "update"), value) for name, value in zip(write_back.counts, values, strict=True)]
        for (layer, site), value in sites:
            named = dict(zip(COUNTERS, value, strict=True))
            rows[layer, site] = {"layer": layer, "site": site, "amax": named["amax"], "scale": named["scale"]} | _rates(
                value
            )
        for row in diagnosed:
            rows.setdefault((row["layer"], row["site"]), {}).update(row)
        return [{"step": step, **row} for row in rows.values()]


def _rates(counts: Sequence[float]) -> dict[str, float]:
    """Shares of the non-zero values; empty if there was none."""
    nonzero, overflow, underflow, saturated = counts[:4]
    if not nonzero:
        return {}
    return {
        "overflow_rate": overflow / nonzero,
        "underflow_rate": underflow / nonzero,
        "saturation_rate": saturated / nonzero,
    }

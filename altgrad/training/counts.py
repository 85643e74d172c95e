"""The rounding counts of all sites: gathered in one transfer per step, turned into rates and `layers` rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altgrad.metrics import Site
from altgrad.quantization.layers import QuantizedLinear
from altgrad.quantization.site import COUNTERS
from altgrad.training.config import GEMM_SITES
from altgrad.training.optim import WriteBack

Row = dict[str, Any]


class SiteCounts:
    """Reads what every site counted in the last forward and backward pass.  A site that was not used is absent."""

    def __init__(self, layers: Mapping[str, QuantizedLinear]) -> None:
        self._layers = layers
        self._keys: list[tuple[str, Site]] = []
        self._values: list[list[float]] = []

    def read(self, others: Sequence[Tensor]) -> list[float]:
        """`others` (0-d) followed by all sites' counts as numbers: the step's one transfer to the host."""
        self._keys = []
        taken: list[Tensor] = []
        for name, layer in self._layers.items():
            for site_name in GEMM_SITES:
                site = layer.site(site_name)
                counts = site.take_counts()
                if counts is not None:
                    self._keys.append((name, site_name))
                    taken.append(counts)
                    site.remember(counts[COUNTERS.index("amax")])
        return torch.cat([torch.stack([other.float() for other in others]), *taken]).tolist()

    def rates(self, counts: Sequence[float]) -> dict[str, float]:
        """Overflow, underflow and saturation rates over all sites, from `read`'s counts."""
        width = len(COUNTERS)
        self._values = [list(counts[i : i + width]) for i in range(0, len(counts), width)]
        return _rates([sum(column) for column in zip(*self._values, strict=True)]) if self._values else {}

    def rows(
        self, step: int, diagnosed: Iterable[Mapping[str, Any]], write_back: WriteBack | None
    ) -> list[Mapping[str, Any]]:
        """Rows of the `layers` table: each site's counts, joined with what the diagnostics found there."""
        rows: dict[tuple[str, str], Row] = {}
        sites: list[tuple[tuple[str, Site], list[float]]] = list(zip(self._keys, self._values, strict=True))
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
    """Shares of the non-zero values; nothing where there was none."""
    nonzero, overflow, underflow, saturated = counts[:4]
    if not nonzero:
        return {}
    return {
        "overflow_rate": overflow / nonzero,
        "underflow_rate": underflow / nonzero,
        "saturation_rate": saturated / nonzero,
    }

"""Mean, standard deviation and correlation of a layer's values, and of all layers' values together.

Per layer only sums are kept, which `pool` combines exactly; the values are never concatenated.  Example: layer a has
the values 1, 3 (n 2, sum 4, squared deviations 2), layer b the value 8 (n 1, sum 8, deviations 0).  The mean of all is
12 / 3 = 4; the deviations are 2 + 0 within the layers and 2 x (2 - 4)^2 + 1 x (8 - 4)^2 = 24 between them, together
26 = 3^2 + 1^2 + 4^2.

Sums are accumulated in float64, because a float32 sum over millions of values loses the digits that decide a
correlation, and a constant must have a standard deviation of exactly zero.  All results are 0-d float64 tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


def total(values: Tensor) -> Tensor:
    """Sum in float64; for booleans the number of true ones."""
    return torch.count_nonzero(values).double() if values.dtype == torch.bool else values.sum(dtype=torch.float64)


def mask(keep: Tensor) -> Tensor:
    """A boolean tensor as a bit mask for `only`: int32 with all bits set where true, else 0."""
    return keep.to(torch.int32).neg_()


def only(kept: Tensor, values: Tensor) -> Tensor:
    """float32 `values` where `kept` (see `mask`) is set, else 0, also for NaN; ten times faster than `torch.where`."""
    return (values.view(torch.int32) & kept).view(torch.float32)


class ValueSums(NamedTuple):
    """Count, sum, sum of squared deviations from the mean, and maximum of some values."""

    n: Tensor
    sum: Tensor
    deviation: Tensor
    largest: Tensor

    @classmethod
    def of(cls, values: Tensor, keep: Tensor | None = None) -> ValueSums:
        """The sums over the values where `keep` (bool, same shape) is true; mean, std and largest of none are NaN."""
        if keep is None:
            n, sum_ = values.new_full((), values.numel(), dtype=torch.float64), total(values)
            apart = values - (sum_ / n).float()
            return cls(n, sum_, total(apart * apart), values.amax().double())
        n = total(keep)
        sum_, apart = _apart(values, n, mask(keep))
        largest = values.masked_fill(~keep, -torch.inf).amax().double()
        return cls(n, sum_, total(apart * apart), torch.where(n > 0, largest, torch.nan))

    @classmethod
    def pool(cls, parts: Iterable[ValueSums]) -> ValueSums:
        """The sums over the values of all parts together; parts without values have no effect."""
        n, sum_, deviation, largest = (torch.stack(column) for column in zip(*parts, strict=True))
        empty = n == 0
        mean = sum_.sum() / n.sum()
        between = torch.where(empty, 0.0, n * (sum_ / n - mean) ** 2)
        largest = torch.where(empty, -torch.inf, largest).amax()
        return cls(
            n.sum(),
            sum_.sum(),
            (deviation + between).sum(),
            torch.where(empty.all(), torch.nan, largest),
        )

    @property
    def mean(self) -> Tensor:
        """The mean (0-d, float64); NaN of no values."""
        return self.sum / self.n

    @property
    def std(self) -> Tensor:
        """Population standard deviation: the squared deviations are divided by n."""
        return (self.deviation / self.n).sqrt()


class PairSums(NamedTuple):
    """Count, sums, and sums of products of deviations from the means, of pairs (x, y)."""

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, keep: Tensor) -> PairSums:
        """The sums over the pairs where `keep` (bool, same shape) is true."""
        return next(cls.of_each([x], y, keep))

    @classmethod
    def of_each(cls, xs: Iterable[Tensor], y: Tensor, keep: Tensor) -> Iterator[PairSums]:
        """The sums over the pairs of several x with one y; the terms that depend on y alone are computed once."""
        n, kept = total(keep), mask(keep)
        sum_y, from_mean_y = _apart(y, n, kept)
        yy = total(from_mean_y * from_mean_y)
        for x in xs:
            sum_x, from_mean_x = _apart(x, n, kept)
            xx, xy = total(from_mean_x * from_mean_x), total(from_mean_x * from_mean_y)
            yield cls(n, sum_x, sum_y, xx, yy, xy)

    @classmethod
    def pool(cls, parts: Iterable[PairSums]) -> PairSums:
        """The sums over the pairs of all parts together; parts without pairs have no effect."""
        n, x, y, xx, yy, xy = (torch.stack(column) for column in zip(*parts, strict=True))
        empty = n == 0
        apart_x = torch.where(empty, 0.0, x / n - x.sum() / n.sum())
        apart_y = torch.where(empty, 0.0, y / n - y.sum() / n.sum())
        return cls(
            n.sum(),
            x.sum(),
            y.sum(),
            (xx + n * apart_x * apart_x).sum(),
            (yy + n * apart_y * apart_y).sum(),
            (xy + n * apart_x * apart_y).sum(),
        )

    @property
    def correlation(self) -> Tensor:
        """Pearson's r; NaN if x or y is constant or there are no pairs."""
        return self.xy / (self.xx * self.yy).sqrt()


def _apart(values: Tensor, n: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of the n kept values, deviation of each from their mean); the deviation is 0 for values not kept."""
    sum_ = total(only(kept, values))
    return sum_, only(kept, values - (sum_ / n).float())

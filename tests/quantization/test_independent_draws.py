"""Random numbers of operands, GEMMs, layers, micro-batches, steps and ranks, as the layers draw them, are unrelated.

Every value lies halfway between two of the format's, so that each draw shows as a bit.  A weight is the exception: it
is whole on every rank, which must round it alike.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.rounding.drawn_bits import SIZE, Source, drawn_bits, largest_correlation

IN_BLOCKS = {"scale_granularity": "1x16"}  # each GEMM rounds along what it contracts; no rank needs another's amax


@pytest.fixture(scope="module")
def drawn() -> dict[Source, torch.Tensor]:
    return {source: bits for rank in range(3) for source, bits in drawn_bits(rank, **IN_BLOCKS).items()}


def of_a_weight(source: Source) -> bool:
    return source[4].endswith("weight")


def test_all_sources_are_there_and_each_rounds_half_of_its_values_up(drawn: dict[Source, torch.Tensor]) -> None:
    assert len(drawn) == 3 * 2 * 2 * 2 * 6  # ranks, steps, micro-batches, layers, operands
    shares = torch.stack([bits.double().mean() for bits in drawn.values()])
    error = 0.5 / SIZE
    assert float((shares - 0.5).abs().max()) < 4.5 * error
    assert 0.8 < float((shares - 0.5).std()) / error < 1.2  # scattered as by chance: no source is balanced by design


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "every other one transposed"])
def test_no_two_sources_are_correlated(drawn: dict[Source, torch.Tensor], turned: bool) -> None:
    """Of 96 + 32 sources, 8128 pairs: beyond 5.5 standard errors lies one by chance in 3000 such tests."""
    bits = [b.T if turned and place % 2 else b for place, (s, b) in enumerate(drawn.items()) if not of_a_weight(s)]
    bits += [b for source, b in drawn.items() if of_a_weight(source) and source[0] == 0]
    assert largest_correlation(bits) < 5.5


def test_shifted_by_rows_they_are_not_correlated_either(drawn: dict[Source, torch.Tensor]) -> None:
    """A rank that drew another rank's rows, or a block of them, would show here."""
    bits = [b for source, b in drawn.items() if source[4] in ("fprop.activation", "dgrad.gradient")]
    for rows in (1, 16, SIZE // 2):
        shifted = [b.roll(rows, 0) for b in bits]
        assert largest_correlation([*bits[::2], *shifted[1::2]]) < 5.5


def test_ranks_round_a_weight_alike_and_nothing_else(drawn: dict[Source, torch.Tensor]) -> None:
    for (rank, *where), bits in drawn.items():
        others = [drawn[(other, *where)] for other in range(3) if other != rank]
        assert all(torch.equal(bits, other) == of_a_weight((rank, *where)) for other in others)  # type: ignore[arg-type]


def test_reused_numbers_would_be_seen(drawn: dict[Source, torch.Tensor]) -> None:
    bits = list(drawn.values())[:6]
    mixed = torch.where(torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.2, bits[0], bits[1])
    assert largest_correlation([*bits, mixed]) > 5.5
    assert largest_correlation([*bits, bits[0].roll(1, 0)]) < 5.5

"""Says that compared runs differ in the share of the model that was rounded: their gap is then not one of formats."""

from __future__ import annotations

from collections.abc import Sequence

from altgrad.compare.row import Row

_ALIKE = 0.005  # shares that differ by less are the same model, measured on another batch


def coverage_note(rows: Sequence[Row]) -> str | None:
    """A sentence that names the smallest and the largest share, with a run for each; None if all are alike."""
    known = sorted(
        ((row.rounded_share, row.run) for row in rows if row.rounded_share is not None), key=lambda one: one[0]
    )
    if not known or known[-1][0] - known[0][0] < _ALIKE:
        return None
    (least, one), (most, other) = known[0], known[-1]
    return (
        f"The runs differ in how much of the model is rounded: {least:.1%} of the GEMM FLOPs in {one}, {most:.1%} in "
        f"{other}. A difference between their losses is not one of number formats alone."
    )

"""Alternatives to a format: more mantissa bits if updates are lost, more exponent bits if its range is too small."""

from __future__ import annotations

from altgrad.formats import NumberFormat


def more_mantissa(fmt: NumberFormat) -> str | None:
    """A format of the same width with up to two exponent bits turned into mantissa bits, or BF16; for 16 bits FP32.

    None for FP32 and formats without an alternative.
    """
    if fmt.bits > 8:
        return {"BF16": "FP32", "FP16": "FP32"}.get(fmt.name)
    exponent = max(fmt.exponent_bits - 2, 2)
    return "BF16" if exponent >= fmt.exponent_bits else f"E{exponent}M{fmt.bits - 1 - exponent}"


def more_exponent(fmt: NumberFormat) -> str | None:
    """A format of the same width with one mantissa bit turned into an exponent bit, or BF16; None for BF16 and FP32.

    E1 is skipped: its grid is that of E0 times a power of two, so it has the same range under scaling.
    """
    if fmt.bits > 8 or fmt.mantissa_bits == 0:
        return None if fmt.exponent_bits >= 8 else "BF16"
    exponent = max(fmt.exponent_bits + 1, 2)
    return f"E{exponent}M{fmt.bits - 1 - exponent}" if exponent < fmt.bits else "BF16"

"""Whether the dtype of a tensor in a model or an optimizer can hold the grid to which it is rounded.

A dtype of 16 bits rounds what is stored in it, so that a value which it lacks would be rounded twice: to the grid, then
to the dtype.  Example: E5M2 under a scale for weights up to 1 has values down to 2^-31; FP16 has none below 2^-24.
"""

from __future__ import annotations

import math

import torch

from altgrad.config.cast import Cast

_MANTISSA = {torch.bfloat16: 7, torch.float16: 10}  # bits
_FLOAT32_TINY = torch.finfo(torch.float32).smallest_normal


def dtype_obstacle(dtype: torch.dtype, cast: Cast, largest: float | None) -> str | None:
    """Why `dtype` cannot hold every value of a cast's grid exactly, in few words; None if it can.

    largest: the magnitude of a tensor's largest values, which a scale follows: what the format spans below it must be
    there.  None: any.  A tensor of smaller values reaches lower; that is not seen here.
    """
    if dtype in (torch.float32, torch.float64):
        return None
    fmt, kept = cast.number_format, _MANTISSA.get(dtype)
    if kept is None:
        return "formats are simulated in float32"
    if fmt.mantissa_bits > kept:
        return f"{fmt} has {fmt.mantissa_bits} mantissa bits, {dtype} has {kept}"
    follows = fmt.scaled and cast.scaling in ("dynamic", "delayed")
    fixed = cast.static_scale if cast.scaling == "static" and fmt.scaled else 1.0
    if cast.scaling != "none" and fmt.scaled and not cast.scales_are_powers_of_two:
        return f"a real scale has 24 significant bits, {dtype} has {kept + 1}"
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps  # the smallest subnormal
    where = f"with the scale {fixed:.3g}" if fixed != 1 else "without a scale"
    if not follows:
        high, low = fixed * fmt.max, fixed * fmt.min_subnormal
        if high > info.max:
            return f"{where} {fmt} reaches {high:.5g}, {dtype} {info.max:.5g}"
    elif largest is None:
        any_size = f"{fmt} under a scale has values of any size, {dtype} none below {least:.3g}"
        return any_size if least > _FLOAT32_TINY else None
    else:
        where = f"scaled to a largest value of {largest:g}"
        low = 2.0 ** math.ceil(math.log2(largest / fmt.max)) * fmt.min_subnormal
    return f"{where} {fmt} has values down to {low:.3g}, {dtype} to {least:.3g}" if low < least else None

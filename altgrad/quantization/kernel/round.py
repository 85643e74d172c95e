"""The rounding kernel: one piece of arithmetic for every format, so that all formats are compared on equal terms.

A format enters as data (0-d tensors), not as Python numbers: one compiled graph serves every format, and changing a
format during a run causes no recompilation.  Values are scaled by powers of two only, which are read from the exponent
bits and therefore exact (log2 is neither exact nor fast).  All values are carried in float32, subnormals included.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantization.kernel.random import draw_key, uniform

Rounding = Literal["nearest", "toward_zero", "stochastic"]
ScaleRule = Literal["ceil", "floor", "even", "ceil_amax"]  # of power-of-two scales

_EXPONENT = 0x7F800000  # exponent bits of float32
_LARGEST_POWER = 0x7F000000  # 2^127
_SIGN = -0x80000000  # sign bit of float32
_FRACTION_BITS = 23  # of float32
SPEC_LENGTH = 18  # int32 of a packed format (see `spec_of`)


class FormatTensors(NamedTuple):
    """A format as the kernel reads it: 0-d tensors on one device, each a view of the `spec` it comes from."""

    min_normal_bits: Tensor  # int32: float32 bits of 2^min_exponent
    min_field: Tensor  # int32: float32 exponent field of 2^min_exponent
    mantissa_bits: Tensor  # int32
    tie_mask: Tensor  # int32: 1 for M = 0, where ties need the parity of the exponent field, else 0
    takes_scale: Tensor  # int32: 0 for formats that are never scaled
    adder_bits: Tensor  # int32: float32 bits of 2^(24 - M), whose ULP 2^(1 - M) is the step of a doubled significand
    # (see `_nearest_double`); 0 for M = 23; for M = 0 the last bit is the parity of min_field
    beyond_bits: Tensor  # int32: float32 bits of the result of a positive overflow
    beyond_flip: Tensor  # int32: XOR with it gives the bits of a negative overflow: sign, and 127 into 128 for INT8
    half_steps: Tensor  # 2^(M - 1): half the number of grid values in a binade
    step: Tensor  # 2^-M: the ULP of values in [1, 2)
    max: Tensor  # largest finite value
    lowest: Tensor  # lowest finite value: -max, or one step below for two's complement
    centre: Tensor  # added to a value before |value| is compared with `reach`: 0, or 0.5 for two's complement, whose
    reach: Tensor  # range -128 to 127 becomes -127.5 to 127.5; reach is max, or there max + 0.5
    zero: Tensor  # added to each result: -0 changes nothing; +0 turns -0 into 0 for formats without negative zero
    infinity: Tensor  # float32 infinity
    salt: Tensor  # int32: makes the random numbers of two tensors with one key differ
    scale_addend: Tensor  # int32: encodes the rule that turns an amax into a power-of-two scale (see `scale_addend`)

    @classmethod
    def of(cls, fmt: NumberFormat, device: torch.device | str = "cpu") -> FormatTensors:
        """The tensors of a format."""
        return cls.view(spec_of(fmt, device=device))

    @classmethod
    def view(cls, spec: Tensor) -> FormatTensors:
        """View a packed spec (see `spec_of`) as its fields; writing another format into `spec` changes them all."""
        integers = spec.unbind()
        floats = spec.view(torch.float32).unbind()
        return cls(*integers[:8], *floats[8:16], *integers[16:18])


def spec_of(
    fmt: NumberFormat, salt: int = 0, device: torch.device | str = "cpu", scale_rule: ScaleRule = "ceil"
) -> Tensor:
    """Pack a format, a salt and a scale rule into one int32 tensor (SPEC_LENGTH,), floats by their bits.

    A layer's graph reads it as data, so that layers of one shape share a graph whatever their formats.  Every dtype and
    device is given explicitly, because the bits are reinterpreted and a program may have changed torch's defaults.
    """
    field = fmt.min_exponent + 127
    mantissa_bits = fmt.mantissa_bits
    adder = (127 + 24 - mantissa_bits) << 23 if mantissa_bits < 23 else 0
    if mantissa_bits == 0:
        adder |= field & 1
    above, below = (math.inf, -math.inf) if fmt.overflow == "inf" else (fmt.max, fmt.lowest)
    ends = torch.tensor([above, below], dtype=torch.float32, device="cpu")
    beyond, beyond_below = ends.view(torch.int32).tolist()
    integers = torch.tensor(
        [
            *(field << 23, field, mantissa_bits, int(mantissa_bits == 0), int(fmt.scaled), adder),
            *(beyond, beyond ^ beyond_below),
        ],
        dtype=torch.int32,
        device=device,
    )
    centre, reach = -(fmt.max + fmt.lowest) / 2, fmt.max / 2 - fmt.lowest / 2
    zero = -0.0 if fmt.has_negative_zero else 0.0
    half_steps, step = 2.0 ** (mantissa_bits - 1), 2.0**-mantissa_bits
    floats = torch.tensor(
        [half_steps, step, fmt.max, fmt.lowest, centre, reach, zero, math.inf], dtype=torch.float32, device=device
    )
    last = torch.tensor([salt, scale_addend(fmt, scale_rule)], dtype=torch.int32, device=device)
    return torch.cat([integers, floats.view(torch.int32), last])


def scale_addend(fmt: NumberFormat, rule: ScaleRule) -> int:
    """The integer that a scale rule adds to the float32 bits of an amax before the fraction bits are cut off.

    The exponent that remains, minus the exponent of the format's largest value, is the exponent of the scale.  In
    E4M3 the largest value 448 is 1.75 x 2^8, so that an amax with exponent 8 gets scale 1 and one with exponent 9
    scale 2.  A fraction carries into the exponent under these conditions:

    ceil: it is beyond that of the largest value.  An amax of 1.76 x 2^8 gets scale 2, one of 1.75 x 2^8 scale 1.
    floor: never.  Both get scale 1, and 1.76 x 2^8 saturates (OCP MX v1.0, 6.3).
    even: it rounds up to 2 at the format's mantissa width.  1.94 x 2^8 gets scale 2.
    ceil_amax: it is not 0.  Both 1.75 x 2^8 and 1.76 x 2^8 get scale 2.
    """
    if rule == "floor":
        return 0
    if rule == "even":
        return 1 << (_FRACTION_BITS - 1 - fmt.mantissa_bits)
    fraction = (1 << _FRACTION_BITS) - 1
    if rule == "ceil_amax":
        return fraction
    return fraction - round((math.frexp(fmt.max)[0] * 2 - 1) * 2**_FRACTION_BITS)


def round_to_format(
    x: Tensor,
    fmt: NumberFormat | FormatTensors,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Round float32 values of any shape to a format's grid; no gradient flows through.

    nearest: ties go to the even *code*.  For M >= 1 that is the even mantissa.  For M = 0 it is the even exponent
    field: in E7M0 the values 1, 2, 4 have the fields 63, 64, 65, so that both ties next to 2 go to 2: 1.5 (between
    1 and 2) up, 3 (between 2 and 4) down.
    toward_zero: the magnitude is truncated.
    stochastic: a value a fraction p of a ULP above the grid value below it is rounded up in magnitude with
    probability p, in steps of 2^-24, drawn from `generator` (torch's default one if None).
    Beyond the largest finite value the format's `overflow` decides.  NaN stays NaN; the sign of zero is kept if the
    format has a negative zero.  Raises TypeError for another dtype than float32.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"round_to_format: x has dtype {x.dtype}; formats are simulated in torch.float32")
    tensors = FormatTensors.of(fmt, x.device) if isinstance(fmt, NumberFormat) else fmt
    with torch.no_grad():
        noise = uniform(draw_key(generator, x.device), x) if rounding == "stochastic" else None
        return saturate(round_magnitude(x, tensors, rounding, noise), x, tensors)


def round_magnitude(x: Tensor, fmt: FormatTensors, rounding: Rounding, noise: Tensor | None = None) -> Tensor:
    """|x| rounded as if the format had no largest value; stochastic rounding needs `noise` in [0, 1), shaped like x.

    toward_zero is the exception: it clamps finite values to the largest one, because truncation cannot make a finite
    value infinite (IEEE 754, 7.4).
    """
    # All tensors here were made here, so that eager code may change them in place; a compiler makes the same code.
    if rounding == "nearest":
        power_bits, double = _nearest_double(x, fmt)
        return double.mul_(0.5).mul_(power_bits.view(torch.float32))
    power_bits, steps = _in_steps(x, fmt)
    if rounding == "toward_zero":
        steps.floor_()
    elif rounding != "stochastic":
        raise ValueError(f"rounding={rounding!r}; known: {', '.join(get_args(Rounding))}")
    else:
        assert noise is not None
        below = torch.floor(steps)
        steps = below + (steps - below > noise)
    magnitude = steps.mul_(fmt.step).mul_(power_bits.view(torch.float32))
    if rounding == "toward_zero":
        magnitude = torch.where(magnitude < torch.inf, magnitude.clamp(max=-fmt.lowest), magnitude)
    return magnitude


def saturate(magnitude: Tensor, x: Tensor, fmt: FormatTensors) -> Tensor:
    """Apply to rounded magnitudes the sign of x, the format's overflow rule and its rule for negative zero."""
    # Not `copysign`: Inductor compiles it to a library call, which spills every register of the vector loop.  One
    # comparison serves both signs, because a second one costs as much as the five bitwise operations here together.
    bits = x.view(torch.int32)
    signed = (bits & _SIGN).bitwise_or_(magnitude.view(torch.int32)).view(torch.float32)
    beyond = (bits >> 31).bitwise_and_(fmt.beyond_flip).bitwise_xor_(fmt.beyond_bits).view(torch.float32)
    return torch.where(magnitude > fmt.max, beyond, signed).add_(fmt.zero)


def grid_index(x: Tensor, fmt: FormatTensors) -> Tensor:
    """Signed index (int32, shaped like x) of the grid value nearest to x; undefined for NaN and inf.

    Index 0 is zero, and 1 the smallest positive value: for x on the grid `fmt.value(abs(index)) == abs(x)`.  Above the
    largest finite value the grid continues, as if the format had more exponent bits.
    """
    power_bits, double = _nearest_double(x, fmt)
    binade = (power_bits >> 23).sub_(fmt.min_field)
    index = (binade << fmt.mantissa_bits).add_(double.mul_(fmt.half_steps).to(torch.int32))
    negative = x.view(torch.int32) >> 31  # all bits or none
    return index.bitwise_xor_(negative).sub_(negative)


def ulp(x: Tensor, fmt: FormatTensors) -> Tensor:
    """Distance between the grid values around x: 2^(max(floor(log2 |x|), min_exponent) - M)."""
    return _power_bits(x, fmt).view(torch.float32) * fmt.step


def _power_bits(x: Tensor, fmt: FormatTensors) -> Tensor:
    """float32 bits of 2^max(floor(log2 |x|), min_exponent); inf and NaN count as 2^127."""
    bits = x.view(torch.int32) & _EXPONENT
    return torch.maximum(bits, fmt.min_normal_bits).clamp_(max=_LARGEST_POWER)


def _in_steps(x: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """(power bits, |x| in units of the ULP around it): in E4M3 the ULP at 26 is 2, which gives 13.

    It is exact, because both factors, 2 / power and 2^(M - 1), are powers of two.
    """
    power_bits, double = _doubled_significand(x, fmt)
    return power_bits, double.mul_(fmt.half_steps)


def _nearest_double(x: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """`_doubled_significand`, rounded to nearest with ties to the even code.

    Adding 2^(24 - M) and subtracting it again lets float32's own addition round to a multiple of that number's ULP,
    2^(1 - M), ties to the even multiple.  For M >= 1 the even multiple is the even code.

    For M = 0 the step is 2 and the only tie is 3, between the multiples 1 x 2 and 2 x 2: float32 always goes up to 4,
    whatever the codes are.  An adder with an odd last bit, 2^24 + 2, makes the tie go down to 2.  It is used if the
    code below is even.  In E7M0, 1.5 lies between the fields 63 and 64: even adder, up to 2.  3 lies between the
    fields 64 and 65: odd adder, down to 2.
    """
    power_bits, double = _doubled_significand(x, fmt)
    adder = (power_bits >> 23).bitwise_and_(fmt.tie_mask).bitwise_xor_(fmt.adder_bits).view(torch.float32)
    return power_bits, double.add_(adder).sub_(adder)


def _doubled_significand(x: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """(power bits, 2 |x| / power), where power = 2^max(floor(log2 |x|), min_exponent); in [2, 4) for normal values.

    The factor is 2 / power and not 1 / power, because 1 / 2^127 would be subnormal.
    """
    power_bits = _power_bits(x, fmt)
    twice_inverse = (_EXPONENT - power_bits).view(torch.float32)
    return power_bits, x.abs().mul_(twice_inverse)

"""The rounding kernel: one piece of arithmetic for every format, so that all formats are compared on equal terms.

A format enters as data (0-d tensors), not as Python numbers: one compiled graph serves every format, and
changing a format during a run recompiles nothing.  All scalings are by powers of two, taken from the exponent
bits, hence exact; log2 is neither exact nor fast.  The carrier is float32, subnormals included.
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
    """A format as 0-d tensors on one device: what the kernel reads.  Views of the `spec` they come from."""

    min_normal_bits: Tensor  # int32: float32 bits of 2^min_exponent
    min_field: Tensor  # int32: float32 exponent field of 2^min_exponent
    mantissa_bits: Tensor  # int32
    tie_mask: Tensor  # int32: 1 for M = 0, where ties need the parity of the exponent field, else 0
    takes_scale: Tensor  # int32: 0 for formats that are never scaled
    adder_bits: Tensor  # int32: float32 bits of 2^(24 - M), whose ULP is that of twice a significand; 0 for M = 23;
    # for M = 0 with the parity of min_field in the last bit
    beyond_bits: Tensor  # int32: float32 bits of what a positive value beyond the largest finite one becomes
    beyond_flip: Tensor  # int32: the bits in which that of a negative value differs: the sign, and 127 from 128
    half_steps: Tensor  # 2^(M - 1): half the grid values per binade
    step: Tensor  # 2^-M: the ULP of values in [1, 2)
    max: Tensor  # largest finite value
    lowest: Tensor  # lowest finite value: -max, or one step below for two's complement
    centre: Tensor  # what moves the finite values to lie evenly around 0: 0, or 0.5 for two's complement
    reach: Tensor  # how far from there they go: max, or max + 0.5
    zero: Tensor  # what is added in the end: -0, or +0 for formats without negative zero (-0 + 0 is 0)
    infinity: Tensor  # float32's
    salt: Tensor  # int32: tells one tensor's random numbers from another's
    scale_addend: Tensor  # int32: the rule by which an amax becomes a power-of-two scale (see `scale.scale_addend`)

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
    """A format, a salt and a scale rule packed into int32, floats by their bits: what a layer's graph reads as data, so
    that layers of one shape share a graph whatever their formats.

    Every dtype and device is named: bits are read, and torch's defaults may be others.
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
    """What a rule adds to the float32 bits of an amax before they are cut to a whole exponent; this exponent less that
    of the format's largest value is the exponent of the scale.

    ceil: so much that a fraction beyond that of the largest value carries into the next exponent.  E4M3's 448 is
    1.75 x 2^8: an amax of 1.76 x 2^8 gets scale 2, one of 1.75 x 2^8 scale 1.
    floor: nothing; both get scale 1, and 1.76 x 2^8 saturates (OCP MX v1.0, 6.3).
    even: half a step of the format's mantissa, so that an amax counts as rounded to it: 1.94 x 2^8 gets scale 2.
    ceil_amax: so much that every fraction but 0 carries: both get scale 2.
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
    """Round float32 values to a format's grid, without gradient.

    nearest: to nearest, ties to the even *code*; this matters for M = 0, where the midpoint of 2^k and 2^(k+1) is
    1.5 x 2^k and goes to the even exponent field.  toward_zero: truncation.  stochastic: up with a probability equal
    to the distance, in steps of 2^-24, drawn from `generator` (torch's default one if None).
    Beyond the largest finite value the format's `overflow` decides; NaN stays NaN, the sign of zero is kept where the
    format has a negative zero.
    Any shape; raises TypeError for another dtype than float32.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"round_to_format: x has dtype {x.dtype}; formats are simulated in torch.float32")
    tensors = FormatTensors.of(fmt, x.device) if isinstance(fmt, NumberFormat) else fmt
    with torch.no_grad():
        noise = uniform(draw_key(generator, x.device), x) if rounding == "stochastic" else None
        return saturate(round_magnitude(x, tensors, rounding, noise), x, tensors)


def round_magnitude(x: Tensor, fmt: FormatTensors, rounding: Rounding, noise: Tensor | None = None) -> Tensor:
    """|x| rounded as if the format had no largest value; `noise` in [0, 1) for stochastic rounding.

    Only toward_zero keeps finite values at the largest one: truncation cannot make them infinite (IEEE 754, 7.4).
    """
    # Everything here is fresh: eager code changes it in place, a compiler sees no difference.
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
    """Give rounded magnitudes the sign of x and the format's overflow rule and zero."""
    # Not `copysign`: Inductor makes a library call of it, which spills every register of the vector loop.  And one
    # comparison for both signs: a second one costs as much as the five bitwise operations here together.
    bits = x.view(torch.int32)
    signed = (bits & _SIGN).bitwise_or_(magnitude.view(torch.int32)).view(torch.float32)
    beyond = (bits >> 31).bitwise_and_(fmt.beyond_flip).bitwise_xor_(fmt.beyond_bits).view(torch.float32)
    return torch.where(magnitude > fmt.max, beyond, signed).add_(fmt.zero)


def grid_index(x: Tensor, fmt: FormatTensors) -> Tensor:
    """Signed index (int32) of the grid value nearest to x; anything for NaN and inf.

    Of a value on the grid: `fmt.value(abs(index)) == abs(x)`.  Above the largest finite value the grid goes on with
    further exponents, as that of a format with as many mantissa bits and more exponent bits.
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
    """(power bits, |x| in units of the ULP around it); exact: a factor 2/power and a factor 2^(M-1)."""
    power_bits, double = _doubled_significand(x, fmt)
    return power_bits, double.mul_(fmt.half_steps)


def _nearest_double(x: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """`_doubled_significand`, rounded to nearest.

    float32's own addition rounds: to a multiple of the adder's ULP, ties to the even one.  That is the even code,
    except for M = 0, where the multiple below a tie is always 1: an odd adder, where the code below is even, turns it.
    """
    power_bits, double = _doubled_significand(x, fmt)
    adder = (power_bits >> 23).bitwise_and_(fmt.tie_mask).bitwise_xor_(fmt.adder_bits).view(torch.float32)
    return power_bits, double.add_(adder).sub_(adder)


def _doubled_significand(x: Tensor, fmt: FormatTensors) -> tuple[Tensor, Tensor]:
    """(power bits, 2 |x| / power), in [2, 4) for normal values; 1 / power itself would be a subnormal for 2^127."""
    power_bits = _power_bits(x, fmt)
    twice_inverse = (_EXPONENT - power_bits).view(torch.float32)
    return power_bits, x.abs().mul_(twice_inverse)

"""Memory that a recipe's weights and optimizer states would take on hardware that stores them in the recipe's formats.

For each weight of a rounded layer, these bytes are counted between two steps: its FP32 master, one rounded copy per
distinct rounding that its GEMMs need (MX formats need one along each dimension; without masters the first copy is the
weight itself, but for a rotation), Adam's two moments, and the Kahan compensation, each with the scales of its blocks.
Gradients, activations, scales of whole tensors and rows, layers in high precision, and parameters outside the matrices
of linear layers are not counted.

No torch: see `train_config`.
"""

from __future__ import annotations

from altgrad.config.cast import Cast
from altgrad.config.operands import roundings
from altgrad.config.optimizer_states import MOMENTS
from altgrad.config.recipe import Recipe

_FP32, _BF16 = 4.0, 2.0
_SCALE_BYTES = {"E8M0": 1.0, "E4M3": 1.0, "FP32": 4.0}
_EXPONENT = 4.0  # an FP32 number beside the scale of a group whose range is expanded


def bytes_per_parameter(recipe: Recipe) -> float:
    """Bytes per weight of a rounded layer.

    Example: E4M3 with one scale per tensor, an FP32 master and FP32 moments takes 4 + 1 + 8 = 13 bytes; without masters
    it takes 1 + 8 = 9, and with the Kahan compensation in BF16 11.
    """
    return max(_in_phase(recipe.in_phase(number)) for number in range(len(recipe.phases) + 1))


def _in_phase(recipe: Recipe) -> float:
    copies = [rounded.cast for rounded in roundings(recipe.casts_at())["weight"]]
    if recipe.master_weights:
        copies = [cast for cast in copies if cast.format != "FP32"]  # the master itself
    elif (at_rest := copies[0].model_copy(update={"hadamard": 0})) not in copies:
        copies.append(at_rest)  # not rotated, unlike the copies of the GEMMs
    found = _FP32 * recipe.master_weights + sum(_stored(cast) for cast in copies)
    if not recipe.master_weights and recipe.update_rounding == "kahan":
        found += _BF16
    moments = recipe.moment_casts()
    for moment in MOMENTS:
        how = moments.get(moment)
        found += _FP32 if how is None else _stored(how.cast, _EXPONENT if how.range_expansion else 0.0)
    return found


def _stored(cast: Cast, beside_scale: float = 0.0) -> float:
    """Bytes of one value of a cast, including its share of the scale of its block."""
    found, tile = cast.number_format.bits / 8, cast.tile
    if tile is not None and cast.number_format.scaled and cast.scaling != "none":
        found += (_SCALE_BYTES[cast.scale_format] + beside_scale) / (tile[0] * tile[1])
    return found

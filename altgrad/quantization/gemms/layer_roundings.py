"""The roundings of a layer: which sites it has in each phase, their formats and counts, and its weight at rest."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.config.cast import GEMMS, Cast, Gemm, GemmSite
from altgrad.config.operands import Operand
from altgrad.config.recipe import Recipe
from altgrad.formats import NumberFormat, Overflow, find_format
from altgrad.quantization.gemms import products
from altgrad.quantization.gemms.past_keys import KEPT, PastKeys
from altgrad.quantization.gemms.sharded import cut_at_rest, own_part
from altgrad.quantization.kernel.compiled import round_stored_compiled
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.rotation import rotated, unrotated
from altgrad.quantization.kernel.round import Rounding
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site, rounded_and_scale
from altgrad.quantization.kernel.site import Reads, Site, SiteSet, together


class LayerRoundings:
    """The roundings of the six operands of a layer's three GEMMs, with their formats, random numbers and state.

    `sites` holds the roundings by name: `weight`, `activation` and `gradient` if all GEMMs round the tensor alike, else
    one for each GEMM that differs, such as `wgrad.activation`.  A site has the format and, if `counting` is set, the
    counts since they were last taken (see `Site.take_counts`).
    `phases`: the sites in each phase of the recipe's schedule; `sites` are those of `phase`, the present one.
    `bypass` is the number of `unrounded` contexts around the layer; if it is not 0, nothing is rounded or counted.  Nor
    is anything in a layer whose formats are all FP32 (`unchanging`), which costs no kernel and has no counts.
    `weight`: the Parameter, or the tensor that the module computes from Parameters (weight norm).
    """

    weight: Tensor
    name: str
    sites: dict[str, Site]
    phases: list[SiteSet]
    phase: int
    reads: Reads  # which rounding each operand of a GEMM is, see `kernel.site`
    stochastic: bool  # whether the present sites draw random numbers
    key: Tensor  # (3,) int32: words of the step's random numbers, then the rank
    draws: int  # stochastic forward passes since the key was set
    past: PastKeys  # that of all layers of a model
    order: int  # place of the key among those of `past`
    used_again: deque[int]  # places of earlier keys with which the layer was used several times
    own_scales: bool  # of a weight that is divided among processes, each chooses the scale of its part
    cuts_columns: Mapping[int, bool | None] = {0: False}  # see `sharded.cut_at_rest`
    watch: Any  # see `RoundedGemm`
    unchanging: bool  # whether all present formats are FP32

    def set_up(
        self, recipe: Recipe, name: str, salt: int, casts: Sequence[Mapping[Operand, Cast]], device: torch.device
    ) -> None:
        """`casts`: those of the six operands in each phase; salt: tells the random numbers of layers apart."""
        self.name = name
        self.master_weights = recipe.master_weights
        self.bypass = 0
        self.watch = None
        self.counting = True
        self.own_scales = False
        self.native_fp8 = recipe.native_fp8
        self.gemm_dtype = recipe.gemm_dtype
        self.bfloat16_pays = products.bfloat16_pays(device)
        self.phases = [SiteSet.of(of_phase, salt, device) for of_phase in casts]
        self.enter(0)
        self.key = torch.zeros(3, dtype=torch.int32, device=device)
        self.draws, self.order, self.past, self.used_again = 0, 0, PastKeys(), deque(maxlen=KEPT)

    @property
    def module(self) -> nn.Module:
        """The module whose forward pass computes the products."""
        assert isinstance(self, nn.Module)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.weight.device

    def trained(self) -> list[nn.Parameter]:
        """The Parameters on which the weight depends."""
        weight = self.weight
        return [weight] if isinstance(weight, nn.Parameter) else list(self.module.parameters())

    @property
    def weight_gradient(self) -> Tensor | None:
        """Gradient of the weight; None if there is none yet, or if the weight is computed from Parameters."""
        weight = self.weight
        return weight.grad if weight.is_leaf else None

    def sizes(self) -> tuple[int, int]:
        """(outputs, inputs) of a GEMM with the weight."""
        weight = self.weight
        return weight.shape[0], weight[0].numel()

    def one_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or a tensor of its shape, as a matrix: a row for each output, or the transpose of that."""
        return weight.flatten(1)

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The weight, or a tensor of its shape, as the GEMMs read it: one tensor for each rounding."""
        return [weight]

    def from_matrices(self, matrices: Sequence[Tensor]) -> Tensor:
        """Undo `matrices`."""
        return matrices[0]

    def enter(self, phase: int) -> None:
        """Round as in that phase from now on."""
        self.phase = phase
        self.sites, self._by_tensor, self.reads, self.stochastic = self.phases[phase]
        self._note_formats()

    def roundings(self, tensor: GemmSite) -> list[Site]:
        """The roundings of a tensor, moved to the weight's device first (loading a state dict may have moved that)."""
        sites = self._by_tensor[tensor]
        if sites[0].spec.device != self.device:
            self.follow()
        return sites

    def site(self, tensor: GemmSite) -> Site:
        """The first rounding of a tensor: the one for `fprop`, or for the output gradient the one for `dgrad`."""
        return self.roundings(tensor)[0]

    def set_key(self, key: Tensor, order: int) -> None:
        """Draw random numbers from this key, noted in `past`, from now on; layers may share a key."""
        if self.draws > 1:
            self.used_again.append(self.order)
        self.key, self.order, self.draws = key, order, 0

    def share(self, scales: bool = True) -> None:
        """Treat input and output gradient from now on as this rank's rows of larger tensors, see `Site.share`."""
        for phase in self.phases:
            for site in (*phase.by_tensor["activation"], *phase.by_tensor["gradient"]):
                site.share(scales)

    def formats_in(self, gemm_name: Gemm) -> tuple[NumberFormat, ...]:
        """The formats of the two operands of a GEMM, in the order of `GEMMS`."""
        of_operand = {operand: site.format for site in self.sites.values() for operand in site.rounded.operands}
        return tuple(of_operand[Operand(gemm_name, tensor)] for tensor in GEMMS[gemm_name])

    def format_of(self, site: GemmSite) -> NumberFormat:
        """The format of the first rounding of a tensor, see `site`."""
        return self.site(site).format

    def follow(self) -> None:
        """Move the key and the sites to the weight's device."""
        device = self.device
        self.bfloat16_pays = products.bfloat16_pays(device)
        self.key = torch.zeros_like(self.key, device=device) if self.key.is_meta else self.key.to(device)
        for phase in self.phases:
            for site in phase.by_name.values():
                site.follow(device)

    def rounded_weight(self) -> Tensor:
        """The rounded weight, in the shape of the weight, without counting: Q_w(W), or if rotated Q_w(W R) R^T."""
        return self.as_weight(self.rounded_weight_and_scale()[0])

    def rounded_weight_and_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rounded weight, scale, inverse scale), each in the shape of `as_read`, without counting.

        Of a weight that is divided among processes, this process's part.
        """
        site = self.site("weight")
        with torch.no_grad():
            mode, key = self._of_part(self._reading, self.key)
            found = [
                rounded_and_scale(matrix, site.spec, site.history, key, mode)
                for matrix in self._read_matrices(own_part(self.weight).detach().float())
            ]
            rounded, scale, inverse = (self._joined(parts) for parts in zip(*found, strict=True))
        return rounded, scale, inverse

    @property
    def keeps_grid(self) -> bool:
        """Whether values that the forward GEMM reads of the weight are on one grid in two steps.

        They are not where the signs of its rotation are drawn anew in each: the values are then others, too.
        """
        return not self._reading.redrawn

    def as_read(self, x: Tensor) -> Tensor:
        """x, in the shape of the weight, as the forward GEMM reads a weight before it rounds it, float32.

        That is x itself, but for a master weight that the GEMM rotates: then x R, padded, with a dimension more if the
        weight is several matrices.  Rotation is linear: of an update it is the change of what is read.
        """
        return self._joined(self._read_matrices(x)) if self._reading.hadamard else x

    def as_weight(self, read: Tensor) -> Tensor:
        """Undo `as_read`; of a rounded rotated weight it is the weight with which the GEMM in effect multiplies."""
        mode = self._reading
        if not mode.hadamard:
            return read
        like = self.matrices(own_part(self.weight).detach())
        parts = [read] if len(like) == 1 else read.unbind()
        turned = (
            unrotated(part, matrix.shape, mode.hadamard, mode.last, self._signs)
            for part, matrix in zip(parts, like, strict=True)
        )
        return self.from_matrices(list(turned))

    @property
    def _reading(self) -> Mode:
        """The mode of the forward GEMM's rounding of a master weight; a stored weight is not rotated at rest."""
        mode = self.site("weight").mode
        return mode if self.master_weights else mode._replace(hadamard=0, redrawn=False)

    @property
    def _signs(self) -> Tensor | None:
        return self.key if self._reading.redrawn else None

    def _read_matrices(self, x: Tensor) -> list[Tensor]:
        mode = self._reading
        if not mode.hadamard:
            return self.matrices(x)
        return [rotated(matrix.float(), mode.hadamard, mode.last, self._signs) for matrix in self.matrices(x)]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if not self._reading.hadamard:
            return self.from_matrices(parts)
        return parts[0] if len(parts) == 1 else torch.stack(list(parts))

    def rounded_at_rest(
        self, wanted: Tensor, key: Tensor, rounding: Rounding, compiled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(stored weight, counts) for a weight that shall become `wanted`, float32, in the shape of the weight.

        Of a weight that is divided among processes, this process's part.  `compiled`: by a compiled graph.  A rotation
        belongs to the GEMM that reads the weight: at rest it is not rotated.
        """
        round_stored = round_stored_compiled if compiled else round_site
        site = self.site("weight")
        mode, key = self._of_part(site.mode._replace(rounding=rounding, at_rest=True, hadamard=0, redrawn=False), key)
        found = [round_stored(matrix, site.spec, site.history, key, mode) for matrix in self.matrices(wanted)]
        if not found:  # this process has none of the experts
            return wanted, wanted.new_zeros(len(COUNTERS))
        return self.from_matrices([rounded for rounded, _ in found]), functools.reduce(together, [c for _, c in found])

    def _of_part(self, mode: Mode, key: Tensor) -> tuple[Mode, Tensor]:
        """Mode and key for the weight between its GEMMs, when it may be divided among processes."""
        cut = cut_at_rest(self.name, self.weight, self.cuts_columns)
        if cut is None:
            return mode, key
        return cut._replace(own_scales=self.own_scales).applied(mode, self.name), cut.placed(key)

    def format_names(self) -> dict[str, tuple[str, Overflow]]:
        """Name and overflow rule of each present rounding's format, for a checkpoint."""
        return {name: (site.format.name, site.format.overflow) for name, site in self.sites.items()}

    def restore_formats(self, names: Mapping[str, tuple[str, Overflow]]) -> None:
        """Set the formats that `format_names` returned in the same phase."""
        for site_name, (name, overflow) in names.items():
            self.set_format(site_name, dataclasses.replace(find_format(name), overflow=overflow))

    def set_format(self, site_name: str, fmt: NumberFormat) -> None:
        """Round to another format from now on.  Raises ValueError if `gemm_dtype` or native FP8 excludes it."""
        site = self.sites[site_name]
        obstacle = site.rounded.cast.bfloat16_obstacle(fmt)
        if self.gemm_dtype == "bfloat16" and obstacle is not None:
            raise ValueError(f"gemm_dtype='bfloat16': {obstacle}; a run that changes to {fmt} needs gemm_dtype='auto'")
        if self.native_fp8 and fmt != site.format:
            raise ValueError(f"native_fp8=True: a site cannot change from {site.format} to {fmt}; use native_fp8=False")
        site.set_format(fmt)
        self._note_formats()

    def _note_formats(self) -> None:
        """Note whether all present formats are FP32: a compiled graph depends on this, and on nothing else of them."""
        self.unchanging = all(site.changes_nothing for site in self.sites.values())

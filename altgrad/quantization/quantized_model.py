"""A model with rounded layers, and the two calls that a training step needs besides forward, backward and optimizer.

A training loop calls one before the forward pass and one after the optimizer step:

    quantized = quantize_model(model, recipe)
    for step in ...:
        quantized.begin_step(seed, step)      # sets the random numbers of the step
        ... forward, backward, optimizer.step() ...
        quantized.after_optimizer(optimizer)  # rounds stored weights and moments; stores amaxes in the histories

The trainer is such a loop.  If the recipe needs one of the calls and the loop omits it, a warning says so once.
`begin_step` also enters the phase of the recipe's schedule to which the step belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from altgrad.config.phases import phase_at
from altgrad.config.recipe import Recipe, as_recipe
from altgrad.quantization.adapters.attention import ProductGemm
from altgrad.quantization.adapters.fit import make_plain
from altgrad.quantization.coverage import Coverage, measure_coverage
from altgrad.quantization.gemms.past_keys import PastKeys
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.kernel.random import derived_words, fill_key
from altgrad.quantization.kernel.site import Site, counted
from altgrad.quantization.layers import gemms_of
from altgrad.quantization.model_state import SiteKey, check_names, check_phases, formats_of, histories_of
from altgrad.quantization.reminder import Reminder
from altgrad.quantization.stored.amax_histories import note_filled, remember
from altgrad.quantization.stored.optimizer_states import OptimizerStates
from altgrad.quantization.stored.write_back import WriteBack

_MICRO_BATCH, _VALIDATION = 0x3B, 0x7D  # tell derived keys apart


class QuantizedModel:
    """The result of `quantize_model`.  `layers`: the rounded layers by name; `write_back`: None with master weights.

    `products`: the rounded products of two activations, if the recipe rounds attention's, by name.
    `left_out`: modules of a kind that is rounded which are left plain, by name, with the reason.
    `phase`: number of the present phase of the recipe's schedule, 0 before the first one starts.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        layers: dict[str, RoundedGemm],
        left_out: Mapping[str, str] | None = None,
        undo: Sequence[Callable[[], None]] = (),
        first_of_phase: Sequence[int] = (),
        again: Callable[[nn.Module, Recipe], QuantizedModel] | None = None,
    ) -> None:
        """`first_of_phase`: the first step of each phase of the schedule, see `config.phases.first_steps`.

        `again`: `quantize_model` with the options of this call, for `set_recipe`.
        """
        self._undo, self._again = list(undo), again
        self._attached: list[Optimizer] = []
        self.model, self.recipe, self.layers, self.left_out = model, recipe, layers, dict(left_out or {})
        self.phase, self._first_of_phase = 0, first_of_phase
        self.products = {gemm.name: gemm for gemm in gemms_of(model) if isinstance(gemm, ProductGemm)}
        self._gemms: dict[str, RoundedGemm] = {**layers, **self.products}
        self.write_back = None if recipe.master_weights else WriteBack(layers, recipe)
        self._phases: list[dict[SiteKey, Site]] = [
            {(name, site): part for name, gemm in self._gemms.items() for site, part in gemm.phases[n].by_name.items()}
            for n in range(len(first_of_phase) + 1)
        ]
        self._shared, self._whole_scales = False, True
        self._step, self._filled, self._compiles_stored = 0, False, False
        self._seed = recipe.seed if recipe.rounding_seed is None else recipe.rounding_seed
        self._unused, self._past = dict[torch.device, Tensor](), PastKeys()  # keys of layers that draw nothing; others
        for gemm in self._gemms.values():
            gemm.past = self._past
        stochastic = any(phase.stochastic for gemm in self._gemms.values() for phase in gemm.phases)
        stochastic |= not recipe.master_weights and "stochastic" in recipe.update_rounding
        moments = recipe.moment_casts()
        self._states = OptimizerStates(moments) if moments else None
        stochastic |= self._states is not None and self._states.stochastic
        written = not recipe.master_weights or bool(moments) or bool(self.histories_of_all_phases())
        begun = stochastic or bool(first_of_phase)
        self._reminder = Reminder(layers.values(), begin_step=begun, after_optimizer=written)
        if self.write_back is not None:
            self.write_back()
            self.write_back.forget()

    def share(self, scales: bool = True) -> None:
        """Treat batches from now on as this rank's rows of larger ones, with scales and random numbers of the whole.

        scales: False for scales of the rank's own rows, as without this call; then no amax is exchanged.
        """
        self._shared, self._whole_scales = True, scales
        for gemm in self._gemms.values():
            gemm.share(scales)

    def attach(self, optimizer: Optimizer) -> None:
        """Call `after_optimizer` after every step of the optimizer, so that the loop need not."""
        self._attached.append(optimizer)
        self._undo.append(optimizer.register_step_post_hook(lambda stepped, *_: self.after_optimizer(stepped)).remove)

    def values_stored(self) -> int:
        """How many values `after_optimizer` rounds: weights without masters, and moments of all matrices."""
        weights = 0 if self.write_back is None else sum(layer.weight.numel() for layer in self.layers.values())
        matrices = sum(one.numel() for one in self.model.parameters() if one.ndim >= 2)
        return weights + matrices * len(self.recipe.moment_casts())

    def compile_stored(self, compiled: bool = True) -> None:
        """Compile the rounding of moments and of weights without masters, which is eager otherwise; no value changes.

        Compiling takes some seconds; torch.compile of the model does not reach what `after_optimizer` does.
        """
        self._compiles_stored = compiled
        for stored in (self.write_back, self._states):
            if stored is not None:
                stored.compiled = compiled

    def begin_step(self, seed: int | None, step: int, micro_batch: int = 0, rank: int = 0) -> None:
        """Draw the random numbers of (seed, step, micro_batch) from now on; micro_batch 0 also resets all counts.

        Where a phase of the recipe's schedule starts with this step, all layers round by its casts from now on, and
        weights without masters are rounded to its grid.  Call it before the forward pass of every step, or of every
        micro-batch, counted from 0.  seed: None is the recipe's.  rank: of this process among those that share a batch.
        Raises ValueError for a rank other than 0 if `share` was not called.
        """
        if rank and not self._shared:
            raise ValueError(f"begin_step: rank={rank}, but the ranks share no batch; call share() once before")
        seed, self._step = self._seed if seed is None else seed, step
        phase = phase_at(self._first_of_phase, step)
        if phase != self.phase:
            self._enter(phase)
        self._set_key((seed, step) if micro_batch == 0 else derived_words(seed, step, _MICRO_BATCH, micro_batch), rank)
        self._reminder.step_begun()
        if micro_batch:
            for site in self._sites.values():
                site.set_aside()
            return
        self._forget_counts()
        if self.write_back is not None:
            self.write_back.begin_step(seed, step)
        if self._states is not None:
            self._states.begin_step(seed, step)

    def dequantize_(self) -> nn.Module:
        """Make the model plain again, with its weights as they are, and return it; this object is of no more use."""
        make_plain(self.model)
        while self._undo:
            self._undo.pop()()
        self._reminder.stop()
        return self.model

    def set_recipe(self, recipe: Recipe | str) -> None:
        """Round by another recipe from the next `begin_step` on; counts and histories begin anew.

        recipe: also its name, as for `quantize_`.  Options of `quantize_model`, attached optimizers and `share` stay.
        Raises what `quantize_` raises; then all is as it was before the call.
        """
        assert self._again is not None, "made by quantize_model"
        wanted = as_recipe(recipe, "set_recipe")
        shared, scales, attached, before = self._shared, self._whole_scales, self._attached, self.state_dict()
        compiled = self._compiles_stored
        while self._undo:
            self._undo.pop()()
        self._reminder.stop()
        refused: ValueError | None = None
        try:
            found = self._again(self.model, wanted)
        except ValueError as error:
            refused, found = error, self._again(self.model, self.recipe)
            found.load_state_dict(before)
        vars(self).update(vars(found))
        self.compile_stored(compiled)
        if shared:
            self.share(scales)
        for optimizer in attached:
            self.attach(optimizer)
        if refused is not None:
            raise refused

    def coverage(self, loss: Callable[[], Tensor]) -> Coverage | None:
        """Measure which share of the products behind `loss()`, the loss on one batch, is rounded.

        The model is left unchanged; see `measure_coverage`.
        """
        return measure_coverage(self.model, loss, self.left_out)

    def _show(self, phase: int) -> None:
        """Make this the present phase, without changing anything in its sites."""
        self.phase = phase
        for gemm in self._gemms.values():
            gemm.enter(phase)

    def _enter(self, phase: int) -> None:
        """Go on in this phase, with the amaxes, shifted formats and stored weights of the one before."""
        rounded = [
            [one.phases[at].by_tensor["weight"][0].rounded for at in (self.phase, phase)]
            for one in self.layers.values()
        ]
        for gemm in self._gemms.values():
            gemm.phases[phase].continue_from(gemm.phases[self.phase])
        self._show(phase)
        self._filled = note_filled(self._sites)
        if self.write_back is not None and any(old != new for old, new in rounded):
            self.write_back.begin_step(0, 0)  # the random numbers of initial weights
            self.write_back()

    @property
    def _sites(self) -> dict[SiteKey, Site]:
        return self._phases[self.phase]

    def begin_validation(self, seed: int | None, step: int, batch: int) -> None:
        """Draw the random numbers of a held-out batch from now on; every rank evaluates the whole batch.

        It may come between a forward pass and its backward pass, whose numbers stay those of the step.
        """
        seed = self._seed if seed is None else seed
        self._set_key(derived_words(seed, step, _VALIDATION, batch), 0)

    def after_optimizer(
        self, optimizer: Optimizer | None = None, counts: Mapping[SiteKey, Tensor] | None = None
    ) -> None:
        """Round weights without masters and moments to their grids, and store the step's amaxes in the histories.

        Call it after every `optimizer.step()`.  counts: those of all ranks together; None: this process's own.
        Raises ValueError if the recipe rounds moments or feeds errors into them and no optimizer is given.
        """
        feeds = self.write_back is not None and self.write_back.feeds_back
        if optimizer is None and (feeds or self._states is not None):
            raise ValueError(
                "after_optimizer(): this recipe changes the optimizer's moments; call after_optimizer(optimizer)"
            )
        if self.write_back is not None:
            self.write_back(optimizer)
        if self._states is not None and optimizer is not None:
            self._states(optimizer)
        self._remember(self.counts() if counts is None else counts)
        self._reminder.written()

    def after_skipped_step(self, counts: Mapping[SiteKey, Tensor] | None = None) -> None:
        """Instead of `after_optimizer` where the optimizer did not move, because a gradient was NaN or inf.

        A site of delayed scaling that rounded to inf remembers its amax all the same: with `overflow: inf` its scale
        would else stay too small, and every step to come would be skipped.  The gradients of the layers below it are
        inf or NaN in that step, and have no amax: of several such layers one is widened per step.  All other histories
        stay as they are: the amaxes of a broken batch are none of this training's.  counts: as for `after_optimizer`.
        """
        counts = self.counts() if counts is None else counts
        to_inf = {key: count for key, count in counts.items() if self._sites[key].format.overflow == "inf"}
        self._remember(to_inf, only_wider=True)

    def counts(self) -> dict[SiteKey, Tensor]:
        """The counts of each site since the step began, (len(COUNTERS),); a site that was not used is absent."""
        return counted(self._sites)

    def site_keys(self) -> list[SiteKey]:
        """Layer and rounding of every site, in an order that does not change."""
        return list(self._sites)

    def histories(self) -> dict[str, Tensor]:
        """The amax histories of delayed scaling, newest first, by `layer.site`; writing to them changes the scales.

        To empty one, load a `state_dict` in which it is empty.
        """
        return {f"{name}.{site}": part.history for (name, site), part in self._sites.items() if part.delayed}

    def histories_of_all_phases(self) -> list[Tensor]:
        """The amax histories of all phases of the schedule: the same tensors from the first step to the last."""
        return [part.history for sites in self._phases for part in sites.values() if part.delayed]

    def compensations(self) -> dict[str, Tensor]:
        """Intended minus stored weights, by layer; empty unless `update_rounding` is kahan."""
        return {} if self.write_back is None else self.write_back.compensations

    def state_dict(self) -> dict[str, Any]:
        """Formats, amax histories, corrections and compensations: the state of the next step beyond the model's own.

        With a schedule also the number of the present phase, and the formats and histories of the later ones.
        """
        compensations = self.compensations()
        first, *later = ({"formats": formats_of(sites), "histories": histories_of(sites)} for sites in self._phases)
        return {
            **first,
            "corrections": {} if self.write_back is None else dict(self.write_back.corrections),
            **({"compensations": dict(compensations)} if compensations else {}),
            **({"phase": self.phase, "phases": later} if later else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`.  Raises ValueError if it belongs to another model or recipe."""
        corrections = {} if self.write_back is None else self.write_back.corrections
        compensations = self.compensations()
        check_phases(state, self._phases)
        check_names("corrections", corrections, state)
        if compensations:
            check_names("compensations", compensations, state)
        for phase, kept in enumerate([state, *state.get("phases", [])]):
            self._show(phase)
            for name, formats in kept["formats"].items():
                self._gemms[name].restore_formats(formats)
            for name, history in self.histories().items():
                history.copy_(kept["histories"][name])
        self._show(state.get("phase", 0))
        self._filled = note_filled(self._sites)
        for name, correction in corrections.items():
            correction.copy_(state["corrections"][name])
        for name, compensation in compensations.items():
            compensation.copy_(state["compensations"][name])
        self._reminder.written()

    def load_earlier(self, state: Mapping[str, Any]) -> None:
        """Take the histories, corrections and compensations of an earlier `state_dict`; formats and phase stay."""
        now = self.state_dict()
        later = zip(state.get("phases", []), now.get("phases", []), strict=True)
        phases = [{**kept, "formats": own["formats"]} for kept, own in later]
        taken = {**state, "formats": now["formats"], "phase": self.phase, **({"phases": phases} if phases else {})}
        self.load_state_dict(taken)

    def _set_key(self, words: tuple[int, int], rank: int) -> None:
        """A new tensor at each call: the graphs of earlier forward passes keep theirs."""
        layers, keys = self._gemms.values(), {}
        drawn = {layer.device for layer in layers if layer.stochastic}
        with torch.inference_mode(False):  # a first evaluation may be within inference mode
            for device in drawn | {layer.device for layer in layers} - self._unused.keys():
                keys[device] = torch.zeros(3, dtype=torch.int32, device=device)
                fill_key(keys[device], *words, rank)
        self._unused |= {device: key for device, key in keys.items() if device not in drawn}
        self._past.note(keys)
        for layer in layers:
            layer.set_key(keys.get(layer.device, self._unused.get(layer.device, layer.key)), self._past.order)

    def _remember(self, counts: Mapping[SiteKey, Tensor], only_wider: bool = False) -> None:
        """Store amaxes in the histories, see `amax_histories`, and begin to count anew.

        Whether all histories are filled is asked at steps 0, 1, 2, 4, 8, ...: the device is waited for, and the history
        of a layer that never has a gradient stays empty.
        """
        remember(self._sites, counts, only_wider)
        if not self._filled and self._step & (self._step - 1) == 0:
            self._filled = note_filled(self._sites)
        self._forget_counts()

    def _forget_counts(self) -> None:
        for site in self._sites.values():
            site.forget_counts()

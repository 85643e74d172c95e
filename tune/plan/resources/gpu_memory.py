"""Estimates the GPU memory of a trial from its config alone, so that the trials on one GPU fit into its memory.

The estimate is a number of values, float32 unless said:  kept + max(a step, a diagnosis, a shadow).  Its symbols:
P parameters, of which L in linear layers (largest matrix: M values), T = batch / accumulate x block tokens, width d,
vocabulary V, and S = T max(4d, V) values in the largest GEMM operand or output.

    kept         7 P + 2 L: weights P, gradients P, AdamW's moments 2 P, the guard's snapshot of weights and moments
                 3 P, and 3 P more with the rescue ladder; the window of the realised displacement 2 L (stored
                 weights at its start, and either the masters then or the corrections since); with Kahan's
                 compensations 2 L, for they are in the snapshot, and L more with the rescue ladder
    a step       17 T d per transformer block, saved for backward (T d each: both norms' inputs, the rounded inputs of
                 qkv, proj and up, attention's output; 3 T d: q, k, v; 4 T d each: GELU's input, the rounded input of
                 down); at the head 2 T d, and T V log-probabilities; L rounded weights; 5 S temporaries of rounding
                 (6 S with blocks, 1.5 S more if stochastic).  P is deducted, because `kept` counts all gradients, but
                 backward allocates them while it frees activations.  Fused attention keeps no matrix of
                 probabilities, of which there are A = T x heads x block; where `attention_gemms` rounds its products,
                 each transformer block saves 2 A (softmax and what it is rounded to), and S is at least A.
                 Rounded operands (7 T d, 1 at the head, L) are bfloat16 where their GEMMs multiply that, and within
                 autocast so are q, k, v, attention's output and GELU's input (8 T d).
    a diagnosis  5 L + 5 M copies (weight before, intended and stored, updates); stiffness or grid alignment
                 1 L + 5.5 M; ULPs moved 4 L, and then no M, because the peaks do not coincide; scales of blocks 2 L
    a shadow     a second forward pass while the gradients exist: everything that a step saves, and 2 S

Example: `tiny` at batch 12 has P = 0.503M, L = 0.467M, M = 0.037M, T = 768, d = 96, V = 256, S = 0.295M.  kept is
4.45M, a step 5.82M + 5 S - P = 6.80M, a diagnosis 2.52M; together 11.25M values or 43 MiB.

The factors were measured on eager CPU steps, and a test checks them there; a compiled step needs less.  Another counts
what autograd saves with autocast and bfloat16 operands, as a GPU has them by itself.  One from before compute
capability 8.0 has neither; `autocast: false` and `gemm_dtype: float32` give its estimate.  The additions for a GPU
(context, fragmentation) are allowances, not measurements.  No torch: planning needs this before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from altgrad.config.train_config import BUILT_IN_TASK, TrainConfig
from altgrad.corpus.token_files import sampled_vocabulary
from tune.plan.options import SweepError

if TYPE_CHECKING:
    from tune.plan.trial import Trial

GIB = 2**30
_FLOAT, _HALF = 4, 2  # bytes of float32 and bfloat16
_CONTEXT = int(0.75 * GIB)  # CUDA context, cuBLAS workspace and loaded kernels of one process
_FRAGMENTS = 1.15  # memory of torch's caching allocator as a multiple of its tensors
_BYTE_VOCABULARY = 256
_SMALLER = "use a smaller batch_size, block_size or --model"
_FINEST = 16  # most trials on one GPU if the share is chosen here


@dataclass(frozen=True)
class Estimate:
    """Peak memory of a trial's tensors in bytes: `kept` permanently, and `added` at the peak."""

    kept: int
    added: int

    @property
    def tensors(self) -> int:
        """The peak in bytes."""
        return self.kept + self.added

    @property
    def on_gpu(self) -> int:
        """GPU memory of the trial's process in bytes, with CUDA context and fragmentation."""
        return int(_CONTEXT + _FRAGMENTS * self.tensors)


def estimate(config: TrainConfig, vocabulary: int) -> Estimate:
    """A trial's peak memory by the formula of this module; `vocabulary`: number of token ids."""
    shape, d = config.shape, config.shape.n_embd
    block_matrices = 12 * d * d * shape.n_layer
    linear = block_matrices + vocabulary * d
    embeddings = (shape.block_size + (0 if config.tied_head else vocabulary)) * d
    parameters = linear + embeddings + shape.n_layer * 13 * d + 2 * d  # biases and norms
    largest = max(4 * d * d, vocabulary * d)
    copies_kept = 2 + config.enable_rescue_ladder  # of Kahan's compensations, with those of the snapshots
    kahan = copies_kept * (not config.master_weights and config.update_rounding == "kahan")
    kept = (7 + 3 * config.enable_rescue_ladder) * parameters + (2 + kahan) * linear

    tokens = config.batch_size // config.accumulate * shape.block_size
    site = max(tokens * max(4 * d, vocabulary), _probabilities(config))
    saved = saved_for_backward(config, vocabulary) / _FLOAT
    blocks = config.scale_granularity not in ("tensor", "row") or bool(config.gemms or config.phases)
    temporaries = 5 + blocks + 1.5 * (config.rounding == "stochastic")
    step = saved + temporaries * site - parameters
    per_weight = config.log_stiffness or config.log_grid_alignment
    copies = 5 + 4 * config.log_ulp + per_weight + 2 * blocks
    diagnosis = copies * linear + (0 if config.log_ulp else 5 + 5.5 * per_weight) * largest
    shadow = saved + 2 * site if config.use_shadow else 0
    return Estimate(_FLOAT * kept, _FLOAT * int(max(step, diagnosis, shadow)))


def saved_for_backward(config: TrainConfig, vocabulary: int) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides the parameters."""
    shape, d, layers = config.shape, config.shape.n_embd, config.shape.n_layer
    tokens = config.batch_size // config.accumulate * shape.block_size
    on_gpu = config.device != "cpu"
    autocast = config.autocast is True or (config.autocast == "auto" and on_gpu)
    casts = config.casts_at().values()
    exact = on_gpu and all(cast.bfloat16_obstacle() is None for cast in casts)
    narrow = config.gemm_dtype == "bfloat16" or (config.gemm_dtype == "auto" and exact)
    operand, other = (_HALF if narrow else _FLOAT), (_HALF if autocast else _FLOAT)
    per_block = 2 * _FLOAT + 7 * operand + 8 * other
    weights = 12 * d * d * layers + vocabulary * d
    attention = 2 * layers * _probabilities(config) * _FLOAT
    return attention + tokens * (d * (per_block * layers + _FLOAT + operand) + vocabulary * _FLOAT) + weights * operand


def _probabilities(config: TrainConfig) -> int:
    """Number of probabilities in a block's attention, where its products are rounded: a fused kernel keeps none."""
    shape = config.shape
    tokens = config.batch_size // config.accumulate * shape.block_size
    return tokens * shape.block_size * shape.n_head if config.attention_gemms else 0


def vocabulary_of(config: TrainConfig) -> int:
    """Number of token ids: 256 for text (bytes); for token files one more than the largest of the first million ids."""
    return sampled_vocabulary(config) or _BYTE_VOCABULARY


def needs(trials: Iterable[Trial]) -> list[tuple[int, str]]:
    """(bytes of GPU memory, run) of each trial that trains the built-in GPT on a GPU, the largest first.

    The size of another task's model is not known before it is made.
    """
    found = [
        (estimate(trial.config, vocabulary_of(trial.config)).on_gpu, trial.run)
        for trial in trials
        if trial.config.device != "cpu" and trial.config.task == BUILT_IN_TASK
    ]
    return sorted(found, reverse=True)


def fitting_share(trials: Sequence[Trial], gpu_bytes: int, wanted: float) -> float:
    """The share of a GPU per trial: `wanted`, or more if as many of the largest trials would not fit on one GPU.

    Raises SweepError if not even one trial fits.
    """
    wishes = needs(trials)
    fit = _number_that_fits(wishes, gpu_bytes)
    if wishes and not fit:
        raise SweepError(
            f"{wishes[0][1]} needs about {_gib(wishes[0][0])} of GPU memory, a GPU has {_gib(gpu_bytes)}; {_SMALLER}"
        )
    return wanted if not wishes else max(wanted, share_of(fit))


def check_share(share: float, trials: Sequence[Trial], gpu_bytes: int) -> None:
    """Raise SweepError if the trials that a share puts on one GPU need more memory than it has."""
    together = max(1, int(1 / share))
    wishes = needs(trials)[:together]
    total = sum(size for size, _ in wishes)
    if total <= gpu_bytes:
        return
    fit = _number_that_fits(wishes, gpu_bytes)
    one, has = _gib(wishes[0][0]), f"a GPU has {_gib(gpu_bytes)}"
    way_out = f"use {share_of(fit):g}" if fit else _SMALLER
    if len(wishes) == 1:
        raise SweepError(f"--gpus-per-trial {share:g}: {wishes[0][1]} needs about {one}, {has}; {way_out}")
    raise SweepError(
        f"--gpus-per-trial {share:g}: {len(wishes)} trials on a GPU need about {one} each (the largest, "
        f"{wishes[0][1]}) = {_gib(total)}, {has}; {way_out}"
    )


def share_of(trials_per_gpu: int) -> float:
    """The shortest decimal fraction that puts this many trials on a GPU: 3 -> 0.33, 13 -> 0.076."""
    digits = 2
    while int(1 / (share := int(10**digits / trials_per_gpu) / 10**digits)) != trials_per_gpu:
        digits += 1
    return share


def _number_that_fits(wishes: Sequence[tuple[int, str]], gpu_bytes: int) -> int:
    """Number of the largest trials that fit on a GPU together, at most `_FINEST`; that many also if all fit."""
    total = 0
    for count, (size, _) in enumerate(wishes):
        total += size
        if total > gpu_bytes:
            return min(count, _FINEST)
    return _FINEST


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"

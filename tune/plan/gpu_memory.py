"""How much GPU memory a trial will need, from its config alone, so that trials packed onto a GPU fit into it.

The estimate counts float32 tensors; P parameters, of which L in linear layers (largest matrix: M values), batch x
block = T tokens, width d, vocabulary V, largest GEMM operand or output S = T max(4d, V):

    kept         weights P, gradients P, AdamW's moments 2P; the guard's copy of the last good weights and moments 3P;
                 the displacement's window 2L: stored weights at its start, and masters then or corrections since
    a step       per layer 17 T d saved for backward (d each: both norms' inputs, the rounded inputs of qkv, proj and
                 up, attention's output; 3d: q, k, v; 4d each: GELU's input, the rounded input of down); at the head
                 2 T d and the log-probabilities T V; rounded weights L; rounding's temporaries 5 S (6 with blocks,
                 1.5 more if stochastic).  Backward's gradients come while the activations go: P less.
                 Attention is fused: no T x T matrix is kept.
    a diagnosis  the weight before, intended and stored, and updates 5 L + 5 M; stiffness or alignment 1 L + 5.5 M;
                 ULPs moved 4 L and no M, for its moment is another; scales per block 2 L
    a shadow     a second forward pass beside the gradients: what a step saves, and 2 S

The most of the last three comes on top of what is kept.  The factors were measured on eager CPU steps (a test holds
them there); a compiled step needs less.  What a GPU adds is an allowance, not a measurement.
No torch: a plan must know this before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from altgrad.config.train_config import TrainConfig
from altgrad.corpus.token_files import sampled_vocabulary
from tune.plan.options import SweepError

if TYPE_CHECKING:
    from tune.plan.trial import Trial

GIB = 2**30
_FLOAT = 4  # bytes
_CONTEXT = int(0.75 * GIB)  # CUDA context, cuBLAS workspace and loaded kernels of one process
_FRAGMENTS = 1.15  # what torch's caching allocator holds beyond its tensors
_BYTE_VOCABULARY = 256
_SMALLER = "use a smaller batch_size, block_size or --model"
_FINEST = 16  # trials on one GPU, at most, when the share is chosen here


@dataclass(frozen=True)
class Estimate:
    """Peak memory of a trial's tensors in bytes: what it always keeps, and the most that a moment adds."""

    kept: int
    added: int

    @property
    def tensors(self) -> int:
        return self.kept + self.added

    @property
    def on_gpu(self) -> int:
        """What its process takes of a GPU."""
        return int(_CONTEXT + _FRAGMENTS * self.tensors)


def estimate(config: TrainConfig, vocabulary: int) -> Estimate:
    """A trial's peak memory (see the formula above); `vocabulary` token ids."""
    shape, d = config.shape, config.shape.n_embd
    block_matrices = 12 * d * d * shape.n_layer
    linear = block_matrices + vocabulary * d
    embeddings = (shape.block_size + (0 if config.tied_head else vocabulary)) * d
    parameters = linear + embeddings + shape.n_layer * 13 * d + 2 * d  # biases and norms
    largest = max(4 * d * d, vocabulary * d)
    kept = 7 * parameters + 2 * linear

    tokens = config.batch_size * shape.block_size
    site = tokens * max(4 * d, vocabulary)
    saved = (17 * shape.n_layer + 2) * tokens * d + tokens * vocabulary + linear
    blocks = config.scale_granularity not in ("tensor", "row") or bool(config.gemms)
    temporaries = 5 + blocks + 1.5 * (config.rounding == "stochastic")
    step = saved + temporaries * site - parameters
    per_weight = config.log_stiffness or config.log_grid_alignment
    copies = 5 + 4 * config.log_ulp + per_weight + 2 * blocks
    diagnosis = copies * linear + (0 if config.log_ulp else 5 + 5.5 * per_weight) * largest
    shadow = saved + 2 * site if config.use_shadow else 0
    return Estimate(_FLOAT * kept, _FLOAT * int(max(step, diagnosis, shadow)))


def vocabulary_of(config: TrainConfig) -> int:
    """Number of token ids: bytes, or for token files the largest id among the first million and one more."""
    return sampled_vocabulary(config) or _BYTE_VOCABULARY


def needs(trials: Iterable[Trial]) -> list[tuple[int, str]]:
    """(bytes of GPU memory, run) of each trial that trains on a GPU, the largest first."""
    found = [
        (estimate(trial.config, vocabulary_of(trial.config)).on_gpu, trial.run)
        for trial in trials
        if trial.config.device != "cpu"
    ]
    return sorted(found, reverse=True)


def fitting_share(trials: Sequence[Trial], gpu_bytes: int, wanted: float) -> float:
    """The share of a GPU for each trial: `wanted`, or more where the largest trials would not fit side by side.

    Raises SweepError where not even one fits.
    """
    wishes = needs(trials)
    fit = _number_that_fits(wishes, gpu_bytes)
    if wishes and not fit:
        raise SweepError(
            f"{wishes[0][1]} needs about {_gib(wishes[0][0])} of GPU memory, a GPU has {_gib(gpu_bytes)}; {_SMALLER}"
        )
    return wanted if not wishes else max(wanted, share_of(fit))


def check_share(share: float, trials: Sequence[Trial], gpu_bytes: int) -> None:
    """Raise SweepError where the trials that a share puts onto one GPU would need more memory than it has."""
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
    """The shortest decimal fraction that puts so many trials on a GPU: 3 -> 0.33, 13 -> 0.076."""
    digits = 2
    while int(1 / (share := int(10**digits / trials_per_gpu) / 10**digits)) != trials_per_gpu:
        digits += 1
    return share


def _number_that_fits(wishes: Sequence[tuple[int, str]], gpu_bytes: int) -> int:
    """How many of the largest trials fit on a GPU together; a GPU that all fit on holds as many as wanted."""
    total = 0
    for count, (size, _) in enumerate(wishes):
        total += size
        if total > gpu_bytes:
            return min(count, _FINEST)
    return _FINEST


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"

"""Every row of the benchmark: its short name, its comparison, its goal and its number of pairs.

The short name runs a row alone: `python -m bench nearest`.  Rows that take minutes run only if they are named.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench import dashboard, kernels, processes
from bench.cuda_bytes import block_against_bfloat16
from bench.harness import Row
from bench.kernels import against_clone
from bench.steps import (
    BY_BLOCKS,
    MEDIUM,
    TINY,
    diagnosed_step_against_step,
    reference_step_against_plain,
    rounded_step_against_bfloat16,
    rounded_step_against_plain,
    run_against_steps,
    second_trial,
    trainer_step_against_plain,
)

_COUNTING = against_clone(counting=True)
_50M = {"model": "medium", "n_layer": 16, "batch_size": 16}

# fmt: off
ROWS: Mapping[str, Row] = {
    # the kernel, relative to torch.clone
    "nearest": Row("round 2^24 float32, nearest (x clone)", 1.2, against_clone()),
    "nearest_two_threads": Row("round 2^24 float32, nearest, 2 threads (x clone)", 1.2, against_clone(number_of_threads=2)),
    "counts": Row("round with all counts and amax, nearest (x clone)", 1.4, _COUNTING),
    "stochastic": Row("round 2^24 float32, stochastic (x clone)", 1.5, against_clone(rounding="stochastic")),
    "rows_scaled": Row("round with one scale per row (x clone)", 1.8, against_clone(granularity="row")),
    "blocks_scaled": Row("round with one scale per 32 values (x clone)", 1.8, against_clone(granularity="1x32")),
    "tiles_1x32_first": Row("round in tiles of 1x32 along the first dimension (x clone)", 1.9, against_clone(granularity="1x32", dimension="first")),
    "tiles_1x128_last": Row("round in tiles of 1x128 along the last dimension (x clone)", 1.9, against_clone(granularity="1x128")),
    "tiles_1x128_first": Row("round in tiles of 1x128 along the first dimension (x clone)", 1.9, against_clone(granularity="1x128", dimension="first")),
    "tiles_128x128": Row("round in tiles of 128x128 (x clone)", 1.9, against_clone(granularity="128x128")),
    # the step, relative to the plain compiled step
    "step_tiny": Row("training step, tiny, rounded (x plain)", 1.10, rounded_step_against_plain(**TINY)),
    "step_medium": Row("training step, 26M parameters, rounded (x plain)", 1.10, rounded_step_against_plain(**MEDIUM), 7),
    "step_mxfp8_tiny": Row("training step, tiny, mxfp8 (x plain)", 1.35, rounded_step_against_plain(recipe="mxfp8", **TINY)),
    "step_mxfp8_medium": Row("training step, 26M parameters, mxfp8, by blocks (x plain)", 1.35, rounded_step_against_plain(recipe="mxfp8", **BY_BLOCKS), 7),
    "step_deepseek_v3_tiny": Row("training step, tiny, deepseek_v3 (x plain)", 1.35, rounded_step_against_plain(recipe="deepseek_v3", **TINY)),
    "step_deepseek_v3_medium": Row("training step, 26M parameters, deepseek_v3, by blocks (x plain)", 1.35, rounded_step_against_plain(recipe="deepseek_v3", **BY_BLOCKS), 7),
    "step_nvfp4_tiny": Row("training step, tiny, nvfp4 (x plain)", 1.8, rounded_step_against_plain(recipe="nvfp4", **TINY)),
    "step_nvfp4_medium": Row("training step, 26M parameters, nvfp4, by blocks (x plain)", 1.8, rounded_step_against_plain(recipe="nvfp4", **BY_BLOCKS), 7),
    "step_statistics_tiny": Row("training step with statistics of every site, tiny (x plain)", 1.20, trainer_step_against_plain(**TINY)),
    "step_statistics_medium": Row("training step with statistics of every site, 26M parameters (x plain)", 1.20, trainer_step_against_plain(**MEDIUM), 7),
    "step_reference": Row("training step of a reference run in FP32, nanoGPT's model, eager (x plain)", 1.15, reference_step_against_plain(compiled=False)),
    "step_reference_compiled": Row("training step of a reference run in FP32, nanoGPT's model, compiled (x plain)", 1.15, reference_step_against_plain(compiled=True)),
    "diagnostics": Row("diagnostics and shadow at their interval (x step)", 1.10, diagnosed_step_against_step, 15),
    "results": Row("results, reports and collapse detection (x steps)", 1.03, run_against_steps, 3),
    "warm_start": Row("second trial of a process, until its first step is done (seconds)", 2.0, second_trial, 5),
    # whole processes
    "memory": Row("memory of a trial, 26M parameters (x bare)", 1.25, processes.peak_memory, 1),
    "start": Row("sweep.py --dry-run (seconds)", 3.0, processes.dry_run, 3),
    "sweep": Row("default sweep, wall clock (x its runs bare / cores)", 1.2, processes.default_sweep, 1, minutes=True),
    # the dashboard, 500 runs of 10,000 steps
    **{f"dashboard_{page}_cold": Row(f"dashboard: page {page}, 500 runs, cold (seconds)", 3.0, dashboard.cold(page), 3) for page in dashboard.PAGES},
    **{f"dashboard_{page}_warm": Row(f"dashboard: page {page}, 500 runs, warm (seconds)", 0.3, dashboard.warm(page), 5) for page in dashboard.PAGES},
    "dashboard_nothing_new": Row("dashboard: a look that finds nothing new (seconds)", 0.01, dashboard.nothing_new, 21),
    "dashboard_curves": Row("dashboard: 60 curves on one chart (seconds)", 1.5, dashboard.sixty_curves, 1),
    # what a GPU would move, counted without one
    "bytes_tensor": Row("bytes of a block on a GPU, one scale per tensor (x BF16)", 1.5, block_against_bfloat16("tensor"), 1),
    "bytes_counts": Row("bytes of a block on a GPU, one scale per tensor, counts (x BF16)", 1.5, block_against_bfloat16("tensor, counts"), 1),
    "bytes_delayed": Row("bytes of a block on a GPU, delayed scales, counts (x BF16)", 1.2, block_against_bfloat16("delayed"), 1),
    "bytes_mxfp8": Row("bytes of a block on a GPU, mxfp8 (x BF16)", 1.7, block_against_bfloat16("mxfp8"), 1),
    # a GPU
    "cuda_round": Row("GPU: round 2^27 float32, nearest (x clone)", 1.18, kernels.gpu_round_against_clone),
    "cuda_step": Row("GPU: training step, 50M parameters, rounded (x BF16)", 1.3, rounded_step_against_bfloat16(**_50M), 11),
    "cuda_graphs": Row("GPU: training step, 50M parameters, rounded, CUDA graphs (x BF16)", 1.3, rounded_step_against_bfloat16(**_50M, cuda_graphs=True), 11),
    "cuda_native": Row("GPU: MLP of a 1B model, FP8 tensor cores (x BF16)", 0.99, kernels.native_mlp_against_bfloat16, 11),
}
# fmt: on

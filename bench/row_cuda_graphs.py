"""On a GPU: the rounded training step of a 50M-parameter model recorded as CUDA graphs."""

from bench.harness import Row
from bench.row_cuda_step import MODEL
from bench.steps import rounded_step_against_bfloat16

ROW = Row(
    "GPU: training step, 50M parameters, rounded, CUDA graphs (x BF16)",
    1.3,
    rounded_step_against_bfloat16(**MODEL, cuda_graphs=True),
    pairs=11,
)

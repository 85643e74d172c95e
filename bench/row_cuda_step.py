"""On a GPU: a training step with all three GEMMs rounded, 50M parameters in the blocks."""

from bench.harness import Row
from bench.steps import rounded_step_against_bfloat16

MODEL = {"model": "medium", "n_layer": 16, "batch_size": 16}

ROW = Row("GPU: training step, 50M parameters, rounded (x BF16)", 1.3, rounded_step_against_bfloat16(**MODEL), pairs=11)

"""A training step with all three GEMMs rounded, 0.5M parameters."""

from bench.harness import Row
from bench.steps import TINY, rounded_step_against_plain

ROW = Row("training step, tiny, rounded (x plain)", 1.10, rounded_step_against_plain(**TINY))

"""A training step with all three GEMMs rounded, 26M parameters."""

from bench.harness import Row
from bench.steps import MEDIUM, rounded_step_against_plain

ROW = Row("training step, 26M parameters, rounded (x plain)", 1.10, rounded_step_against_plain(**MEDIUM), pairs=7)

"""The trainer's step: rounded, every site's statistics read on every step, 0.5M parameters."""

from bench.harness import Row
from bench.steps import TINY, trainer_step_against_plain

ROW = Row("training step with statistics of every site, tiny (x plain)", 1.20, trainer_step_against_plain(**TINY))

"""The trainer's step: rounded, every site's statistics read on every step, 26M parameters."""

from bench.harness import Row
from bench.steps import MEDIUM, trainer_step_against_plain

ROW = Row(
    "training step with statistics of every site, 26M parameters (x plain)",
    1.20,
    trainer_step_against_plain(**MEDIUM),
    pairs=7,
)

"""All diagnostics and the shadow at the sweep's interval, on top of the trainer's step."""

from altgrad.training.trainer import Trainer
from bench.harness import Row, ratio
from bench.steps import TINY, config

_INTERVAL = 25
_DIAGNOSTICS = {"use_shadow": True, "log_stiffness": True, "log_grid_alignment": True, "log_ulp": True}


def _measure(pairs: int) -> float:
    without = Trainer(config(**TINY))
    measured = Trainer(config(**TINY, **_DIAGNOSTICS, diagnostic_interval=_INTERVAL))

    def steps(trainer: Trainer) -> None:
        for _ in range(_INTERVAL):
            trainer.step()

    return ratio(lambda: steps(measured), lambda: steps(without), pairs)


ROW = Row("diagnostics and shadow at their interval (x step)", 1.10, _measure, pairs=15)

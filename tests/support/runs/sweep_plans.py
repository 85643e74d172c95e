"""Machines, configs and plans of sweeps; without torch, as planning itself is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tune.plan.options import parse_options
from tune.plan.resources.machine import Machine
from tune.plan.trial import Trial
from tune.plan.trials import plan_sweep

CPU_BOX = Machine(cpus=2, gpus=0, gpu_note="no CUDA GPU found")
GPU_BOX = Machine(cpus=16, gpus=4, gpu_note="4 CUDA GPUs found")
SCRIPT = Path(__file__).parents[3] / "tune" / "sweep.py"


def planned(*arguments: str, machine: Machine = CPU_BOX) -> dict[str, Trial]:
    return {trial.run: trial for trial in plan_sweep(parse_options(arguments), machine).trials}


def write_config(folder: Path, name: str, **fields: Any) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file

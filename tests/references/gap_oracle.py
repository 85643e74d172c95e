"""A sweep with all that can happen to a gap, and its gaps from the parquet parts, `run.json` and `end.json` alone."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from altgrad.storage.folder import Folder
from tests.support.results.written_runs import COLLAPSED, HASHES, curve, write_run

NAN = math.nan


def two_rates(sweep: Folder) -> None:
    """E4M3 and E5M2 over three seeds at two rates, a dead seed, a NaN at the end, NaN in the middle, runs under way."""
    rng = np.random.default_rng(3)
    for seed, rate in itertools.product((1, 2, 3), (3e-4, 1e-2)):
        at = {"seed": seed, "learning_rate": rate, "max_steps": 100}
        write_run(sweep, f"bf16-{seed}-{rate}", curve(range(10, 101, 10), 2.0), config=at, info=HASHES)
        for fmt in ("E4M3", "E5M2"):
            losses = curve(range(10, 101, 10), 2.1 + float(rng.normal(0, 0.01)) + (rate > 1e-3))
            config = at | {"format": fmt}
            name = f"{fmt.lower()}-{seed}-{rate}"
            if (fmt, rate, seed) == ("E5M2", 3e-4, 2):  # dead at 35, when it was ahead of BF16
                early = {step: loss - 2 for step, loss in losses.items() if step <= 30}
                write_run(sweep, name, early, config=config, status="collapsed", verdict=COLLAPSED, info=HASHES)
            elif (fmt, rate, seed) == ("E5M2", 1e-2, 1):
                write_run(sweep, name, losses | {50: NAN, 100: NAN}, config=config, info=HASHES)
            elif (fmt, rate, seed) == ("E4M3", 1e-2, 3):
                under_way = {step: loss for step, loss in losses.items() if step <= 80}
                write_run(sweep, name, under_way | {20: NAN}, config=config, status=None, info=HASHES)
            else:
                write_run(sweep, name, losses, config=config, info=HASHES)


def oracle(sweep: Folder) -> pd.DataFrame:
    """run, format, seed, rate, status, gap, step, final: from the parquet parts alone."""
    found = []
    for path in sorted(Path(sweep.path).iterdir()):
        info = json.loads((path / "run.json").read_text())
        end = json.loads((path / "end.json").read_text()) if (path / "end.json").exists() else None
        parts = pd.concat(pd.read_parquet(part, dtype_backend="pyarrow") for part in sorted((path / "steps").iterdir()))
        losses = {
            int(step): float(loss.as_py() if hasattr(loss, "as_py") else loss)
            for step, loss in zip(parts["step"], parts["validation_loss"].array, strict=True)
            if loss is not pd.NA
        }
        status = "running" if end is None else end["status"]
        config = info["config"]
        found.append({"run": info["run"], "format": config["format"], "seed": config["seed"],
                      "rate": config["learning_rate"], "status": status, "losses": losses})  # fmt: skip
    frame = pd.DataFrame(found).set_index("run")
    baseline = {(row.seed, row.rate): row.losses for row in frame[frame.format == "BF16"].itertuples()}
    alive = frame[frame.status.isin(["completed", "running"])]
    common = max(set.intersection(*(set(losses) for losses in alive.losses)))
    for name, row in frame.iterrows():
        against = baseline[row.seed, row.rate]
        step = common if row.status in ("completed", "running") else max(set(row.losses) & set(against))
        frame.loc[name, "gap"] = row.losses[step] - against[step]
        frame.loc[name, "gap_step"] = step
        frame.loc[name, "final"] = row.status in ("completed", "running")
    return frame

"""Weights & Biases: one run per trial, grouped by sweep.  Offline by default, so that no account is needed.

The results folder stays the source of truth; this is a copy for those who watch there.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from altgrad.storage import Folder
from tune.options import SweepError, WandbMode
from tune.trial import Trial

if TYPE_CHECKING:
    import wandb

PROJECT = "altgrad"
REPORT = "failure_report.md"  # in the run's folder, where the run collapsed
_LONGEST_ID = 64


def check_account() -> None:
    """Raises SweepError where `--wandb online` has no key to log in with."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    try:
        known = netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        raise SweepError("--wandb online: no key for W&B; run `wandb login` or set WANDB_API_KEY, or use offline")


class Tracker:
    """A trial's W&B run; does nothing where the mode is disabled.

    Files go into the run's folder where that is local, else into a temporary one.  A restarted trial continues
    its run.  Storage that refuses W&B's files costs the copy, not the trial: `lost` then says so.
    """

    def __init__(self, trial: Trial, sweep: str, folder: Folder, mode: WandbMode) -> None:
        self._folder = folder
        self._run: wandb.Run | None = None
        self.lost: str | None = None
        if mode == "disabled":
            return
        import wandb  # 0.6 s, once per worker process

        with self._on_storage():
            place = Path(folder.path) if folder.is_local else Path(tempfile.mkdtemp(prefix="altgrad-wandb-"))
            place.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=_run_id(f"{sweep}-{trial.run}"),
                name=trial.run,
                group=sweep,
                config={**trial.config.model_dump(), "intervention": trial.intervention},
                dir=place,
                mode=mode,
                resume="allow" if mode == "online" else None,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )

    def log(self, records: Iterable[Mapping[str, float]]) -> None:
        """Log records under their step."""
        if self._run is not None:
            with self._on_storage():
                for record in records:
                    metrics = {name: value for name, value in record.items() if name != "step"}
                    self._run.log(metrics, step=int(record["step"]))

    def finish(self) -> None:
        """Upload or store what is left, with the failure report as artifact where there is one.  Once only."""
        if self._run is None:
            return
        import wandb

        run, self._run = self._run, None
        with self._on_storage():
            if self._folder.has(REPORT):
                artifact = wandb.Artifact(f"{run.id}-failure-report", type="failure-report")
                with artifact.new_file(REPORT, mode="wb") as file:
                    file.write(self._folder.read_bytes(REPORT))
                run.log_artifact(artifact)
            run.finish()

    @contextmanager
    def _on_storage(self) -> Iterator[None]:
        """Give up on the copy where its files cannot be written."""
        try:
            yield
        except OSError as error:
            self._run, self.lost = None, f"its W&B run is incomplete: {error}"


def _run_id(name: str) -> str:
    """W&B's limit on the length of an id, kept unique by a hash."""
    if len(name) <= _LONGEST_ID:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: _LONGEST_ID - 13]}-{digest}"

"""Weights & Biases: one run per trial, grouped by sweep.  Offline by default, so that no account is needed.

It is only a copy of the results folder, for people who watch runs in W&B.  A separate thread makes it, so that neither
an exception nor a delay of W&B affects the run; if records are lost, one line says so, and training goes on.
"""

from __future__ import annotations

import netrc
import os
import queue
import tempfile
import threading
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from altgrad.commands.extras import MissingExtra, require
from altgrad.storage.folder import Folder
from altgrad.text.terminal_output import one_line
from tune.plan.options import SweepError, WandbMode
from tune.plan.trial import Trial
from tune.watch import wandb_names as labels

if TYPE_CHECKING:
    import wandb

REPORT = "failure_report.md"  # in the folder of a collapsed run
_FINISH_SECONDS = 30.0  # the time that a finished run waits for its copy
_WAITING = 10_000  # most batches of records that wait for W&B
_MODES: Mapping[str, WandbMode] = {
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
    "disabled": "disabled",
}
_TRUE = ("1", "true", "yes", "on")


def chosen_mode(option: WandbMode | None, environment: Mapping[str, str]) -> tuple[WandbMode, list[str]]:
    """(mode, notes): the mode that `--wandb`, else `WANDB_DISABLED`, else `WANDB_MODE` sets, else offline.

    notes: a sentence for each variable that is overridden, and one if W&B is not installed.
    """
    wishes: list[tuple[str, WandbMode | None]] = []
    if environment.get("WANDB_DISABLED", "").lower() in _TRUE:
        wishes.append(("WANDB_DISABLED=true", "disabled"))
    if environment.get("WANDB_MODE"):
        wishes.append((f"WANDB_MODE={environment['WANDB_MODE']}", _MODES.get(environment["WANDB_MODE"].lower())))
    known = [mode for _, mode in wishes if mode is not None]
    mode = option or (known[0] if known else "offline")
    by = f"--wandb {mode}" if option is not None or not known else wishes[0][0]
    notes = [one_line(f"{wish} is overridden by {by}") for wish, wanted in wishes if wanted != mode]
    if mode != "disabled" and find_spec("wandb") is None:
        return "disabled", [*notes, "no copy for W&B, which is not installed: pip install 'altgrad[wandb]'"]
    return mode, notes


def check_installed(option: WandbMode | None) -> None:
    """Raise SweepError if `--wandb` needs W&B and it is not installed."""
    if option not in (None, "disabled"):
        try:
            require("wandb")
        except MissingExtra as error:
            raise SweepError(f"--wandb {option}: {error}") from error


def check_account() -> None:
    """Raise SweepError if there is no key with which `--wandb online` can log in."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    try:
        known = netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known and not os.environ.get("WANDB_API_KEY"):
        raise SweepError("--wandb online: no key for W&B; run `wandb login` or set WANDB_API_KEY, or use offline")


class Tracker:
    """A trial's W&B run; does nothing if the mode is "disabled".

    Files go to WANDB_DIR, else into the run's folder if that is local, else into a temporary one.  A restarted trial
    continues its W&B run.  `lost`: one line with the reason if the copy is incomplete, else None.
    """

    def __init__(
        self, trial: Trial, sweep: str, folder: Folder, mode: WandbMode, patience: float = _FINISH_SECONDS
    ) -> None:
        self.lost: str | None = None
        self._trial, self._sweep, self._folder, self._mode = trial, sweep, folder, mode
        self._patience = patience
        self._records: queue.Queue[list[Mapping[str, float]] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        if mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def log(self, records: Iterable[Mapping[str, float]]) -> None:
        """Log records under their step; returns at once."""
        self._put(list(records))

    def finish(self) -> None:
        """Let W&B upload or store the remaining records, for a limited time; further calls do nothing."""
        if self._thread is None:
            return
        self._put(None)
        thread, self._thread = self._thread, None
        thread.join(self._patience)
        if thread.is_alive():
            self._lose(f"W&B did not finish within {self._patience:g} s")

    def _put(self, records: list[Mapping[str, float]] | None) -> None:
        if self._thread is None or self.lost is not None:
            return
        try:
            self._records.put_nowait(records)
        except queue.Full:
            self._lose("W&B does not keep up")

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or f"its W&B run is incomplete: {reason}"

    def _work(self) -> None:
        """The thread: all calls of W&B."""
        try:
            run = self._begin()
            while (records := self._records.get()) is not None:
                for record in records:
                    metrics = {name: value for name, value in record.items() if name != "step"}
                    run.log(metrics, step=int(record["step"]))
            self._end(run)
        except BaseException as error:  # W&B raises its own exception classes, and SystemExit
            self._lose(f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__)

    def _begin(self) -> wandb.Run:
        import wandb  # 0.6 s, once per worker process

        entity, project = labels.project(os.environ)
        # W&B also reads these variables, and refuses a project in the form ENTITY/NAME
        os.environ |= {"WANDB_MODE": self._mode, "WANDB_PROJECT": project}
        if entity is not None:
            os.environ["WANDB_ENTITY"] = entity
        return wandb.init(
            entity=entity,
            project=project,
            id=labels.run_id(self._sweep, self._trial.run),
            name=labels.title(self._trial.run),
            group=labels.title(self._sweep),
            config={**self._trial.config.model_dump(), "intervention": self._trial.intervention},
            dir=self._place(),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
        )

    def _place(self) -> Path:
        if os.environ.get("WANDB_DIR"):
            place = Path(os.environ["WANDB_DIR"]).expanduser().absolute()
        else:
            local = self._folder.is_local
            place = Path(self._folder.path) if local else Path(tempfile.mkdtemp(prefix="altgrad-wandb-"))
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _end(self, run: wandb.Run) -> None:
        """Close the W&B run, with the failure report as an artifact if there is one."""
        import wandb

        if self._folder.has(REPORT):
            name = labels.artifact(self._sweep, self._trial.run, "failure-report")
            report = wandb.Artifact(name, type="failure-report")
            with report.new_file(REPORT, mode="wb") as file:
                file.write(self._folder.read_bytes(REPORT))
            run.log_artifact(report)
        run.finish()

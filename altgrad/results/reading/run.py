"""Readers of a run, of the runs in a sweep folder, and of the sweeps below a results root."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.config.run_origin import kept_step
from altgrad.results.lease import Life, life_of, read_lease
from altgrad.results.parts import read_rows
from altgrad.results.records import END, RecordError, read_end, read_start
from altgrad.results.schema import Status, TableName, Verdict
from altgrad.storage.folder import Folder

_READERS = 16  # an object store answers slowly, but many at a time
_SILENT_SECONDS = 60.0  # without a new part; then a run without a lease, as old versions wrote, counts as killed


@dataclass(frozen=True)
class Run:
    """One run as read from its folder.

    `info` is run.json: `run`, `sweep`, `config` (the resolved TrainConfig), `intervention`, `versions`,
    `git_commit`, `host`, `device`, `workers` (processes that train it together), `parameters`, `layers`,
    `initial_weights_hash`, `batches_hash`, and
    - `vocabulary`: the number of classes of a cross-entropy; null for another loss, or if it is unknown;
    - `unigram_entropy`: entropy of the frequencies of the training tokens in nats, of a sample; null if the data are
      no tokens, absent in folders of older versions;
    - `unit`: that of the loss; `task_hash`: changes with the task's name, unit, identity and source;
    - `resources`: {"cpus": cores, "gpus": a number or a share of one} that a sweep gave the run; null outside a sweep;
    - `earlier`: of each attempt before this one {"attempt", "resources", "seconds" of training};
    - `data`: the files, bytes, tokens and id width that were read for the config's `data`, and the files that were
      skipped; null if the user passed batches instead;
    - `coverage`: {"share", "total_flops", "rounded_flops", "modules", "note", "formats"}: the share of the FLOPs of the
      model's matrix products that is rounded, the modules that are not, and the rounded FLOPs by the formats of both
      operands (absent in folders of older versions); null for a model on the `meta` device.
    - `branch`: {"parent": folder, "run", "step", "changes": {field: value}} of a run that started from another one's
      checkpoint: its first step is the one after `step`; null for other runs, absent in folders of older versions;
    - `bytes_per_parameter`: what a weight of a rounded layer and its optimizer state would take on hardware, see
      `sizes.memory`; absent in folders of older versions.
    `end` is end.json, or None if there is none.  Both were checked when they were read, see `records`.
    `damage`: part -> reason, for the parts that could not be read so far; steps that no part has -> "".
    """

    folder: Folder
    info: Mapping[str, Any]
    end: Mapping[str, Any] | None
    damage: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name in run.json, else that of the folder."""
        return self.info.get("run") or self.folder.name

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved TrainConfig, as JSON values."""
        return self.info["config"]

    @property
    def rounded_share(self) -> float | None:
        """Share of the FLOPs of the model's matrix products that is rounded; None if it was not measured."""
        coverage = self.info.get("coverage")
        return _number(coverage.get("share") if isinstance(coverage, dict) else None)

    @property
    def rounded_formats(self) -> dict[str, float]:
        """Shares of the products' FLOPs by the formats of both operands, such as {"E4M3": 0.67, "BF16": 0.33}.

        Empty if they were not measured, or cannot be read.
        """
        coverage = self.info.get("coverage")
        found = coverage.get("formats") if isinstance(coverage, dict) else None
        total = _number(coverage.get("total_flops")) if isinstance(coverage, dict) else None
        if not isinstance(found, dict) or not total:
            return {}
        flops = {name: _number(value) for name, value in found.items()}
        return {name: value / total for name, value in flops.items() if value is not None}

    @property
    def bytes_per_parameter(self) -> float | None:
        """Bytes per weight of a rounded layer, with its optimizer state, on hardware; None if not recorded."""
        return _number(self.info.get("bytes_per_parameter"))

    @property
    def branch_words(self) -> str:
        """`NAME at step 300` for a run that started from a checkpoint of run NAME; "" for other runs."""
        return "" if self.branch is None else f"{self.branch[1]} at step {self.branch[0]}"

    @property
    def start_words(self) -> str:
        """`NAME@300`, or the name of a file or folder, whose weights the run started from; "" for its own weights."""
        start = self.config.get("start_from")
        return PurePath(start).name if isinstance(start, str) else ""

    @property
    def branch(self) -> tuple[int, str] | None:
        """Step and run whose checkpoint the run started from; None for other runs."""
        found = self.info.get("branch")
        return (int(found["step"]), str(found["run"])) if isinstance(found, dict) else None

    @property
    def begins_after(self) -> int:
        """The step of the checkpoint from which the run goes on; 0 for a run that begins with step 1."""
        start, keeps = self.config.get("start_from"), self.config.get("start_keeps")
        kept = kept_step(start, keeps) if isinstance(start, str) and isinstance(keeps, list) else 0
        return max(kept, 0 if self.branch is None else self.branch[0])  # from step 0 a branch begins as its parent did

    @property
    def loss_unit(self) -> str:
        """That of the task; in old folders `nats` if the loss has a known vocabulary, "" if its unit is unknown."""
        unit = self.info.get("unit")
        return str(unit) if unit is not None else "nats" if self.info.get("vocabulary", 0) is not None else ""

    @property
    def verdict(self) -> Verdict | None:
        """The collapse verdict with which the run ended; None without one."""
        found = None if self.end is None else self.end["verdict"]
        return None if found is None else Verdict(**{name: found[name] for name in Verdict.__dataclass_fields__})

    @property
    def status(self) -> Status:
        """The status in end.json; without end.json `killed` if the run's process is dead, else `running`."""
        if self.end is not None:
            return self.end["status"]
        return "killed" if self.life == "dead" else "running"

    @property
    def life(self) -> Life:
        """State of the process of a run without end.json: alive, overdue with the renewal of its lease, or dead."""
        lease = read_lease(self.folder)
        if lease is not None:
            return life_of(self.folder, lease)
        if self.info.get("owner"):  # a run releases its lease at its end, maybe after this object was read
            return "running" if self.folder.has(END) else "dead"
        newest = max((info.mtime_ns or 0 for info in (self.folder / "steps").list()), default=0) / 1e9
        return "running" if time.time() - max(newest, float(self.info["started"])) < _SILENT_SECONDS else "dead"

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        """One table in order of step with the latest attempt of each row: the key columns and `columns` (None: all).

        A part that cannot be read is left out and noted in `damage`, and so are steps that no part has.
        """
        table, broken = read_rows(self.folder, name, columns)
        self.damage.update({f"{name}/{part}": reason for part, reason in broken.items()})
        if name == "steps" and not broken:
            self.damage.update({steps: "" for steps in missing_steps(table, self.begins_after)})
        return table

    def damage_sentences(self) -> list[str]:
        """A sentence for each part that was left out of the tables read so far, and for steps that no part has."""
        return [
            f"{self.name}: {what} is left out: {reason}" if reason else f"{self.name}: no part has {what}"
            for what, reason in sorted(self.damage.items())
        ]


def missing_steps(table: pa.Table, begins_after: int) -> list[str]:
    """`steps 101 to 160` for each gap in a steps table: training writes a row for every step, so a part was lost.

    Rows that somebody wrote at every tenth step, as by hand, are no gaps.
    """
    steps = np.concatenate([[begins_after], table["step"].to_numpy()])
    apart = np.diff(steps)
    if len(apart) < 3 or np.median(apart) != 1:
        return []
    return [
        f"steps {steps[at] + 1} to {steps[at + 1] - 1}" if apart[at] > 2 else f"step {steps[at] + 1}"
        for at in np.flatnonzero(apart > 1)
    ]


def read_run(folder: Folder) -> Run:
    """Read the run in a folder.  Raises FileNotFoundError if there is none, RecordError (a ValueError), OSError."""
    return Run(folder, read_start(folder), read_end(folder))


def list_runs(sweep: Folder) -> tuple[list[Run], dict[str, str]]:
    """The runs of a sweep folder by name, and folder name -> reason for each folder that cannot be read."""
    folders = [
        sweep / info.base_name
        for info in sweep.list()
        if info.type == pafs.FileType.Directory and not info.base_name.startswith(".")
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_run_or_reason, folders))
    broken = {folder.name: one for folder, one in zip(folders, found, strict=True) if isinstance(one, str)}
    runs = [one for one in found if isinstance(one, Run)]
    others = copies(runs)
    return [run for run in runs if run.folder.name not in others], broken | others


def copies(runs: Iterable[Run]) -> dict[str, str]:
    """Folder name -> reason, for each folder that holds a copy of a run that lies in another one of these folders.

    A run that counted twice would be a seed of its own in every number of runs, and all readers find runs by name.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    found: dict[str, str] = {}
    for name, alike in by_name.items():
        if len(alike) == 1:
            continue
        own = next((run for run in alike if run.folder.name == name), alike[0])
        reason = f"a copy of run {name}, which is in {own.folder.name}; move it out of the sweep's folder"
        found |= {run.folder.name: reason for run in alike if run is not own}
    return found


def _run_or_reason(folder: Folder) -> Run | str | None:
    """The run in a folder, or why it cannot be read; None if the folder has no run.json."""
    try:
        return read_run(folder)
    except FileNotFoundError:
        return None
    except (RecordError, OSError) as error:
        return str(error)


def list_sweeps(root: Folder) -> list[Folder]:
    """Sweep folders (those with a sweep.json) below a results root, newest first."""
    folders = [info.path for info in root.list() if info.type == pafs.FileType.Directory]
    marks = root.filesystem.get_file_info([f"{path}/sweep.json" for path in folders])
    found = [
        (mark.mtime_ns or 0, path.rsplit("/", 1)[-1])
        for path, mark in zip(folders, marks, strict=True)
        if mark.type == pafs.FileType.File
    ]
    return [root / name for _, name in sorted(found, reverse=True)]


def _number(value: Any) -> float | None:
    """The value as a number; None if it is anything else, as in a foreign or damaged run.json."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

"""Readers: a run, the runs of a sweep, the sweeps of a root."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.results.lease import Life, life_of, read_lease
from altgrad.results.parts import read_rows
from altgrad.results.records import END, RecordError, read_end, read_start
from altgrad.results.schema import Status, TableName, Verdict
from altgrad.storage.folder import Folder

_READERS = 16  # an object store answers slowly, but many at a time
_SILENT_SECONDS = 60.0  # without a new part, after which a run that never had a lease (an old one) counts as killed


@dataclass(frozen=True)
class Run:
    """One run as read from its folder.

    `info` is run.json: `run`, `sweep`, `config` (the resolved TrainConfig), `intervention`, `versions`,
    `git_commit`, `host`, `device`, `workers` (processes that train it together), `parameters`, `vocabulary`, `layers`,
    `initial_weights_hash`, `batches_hash`, and `resources`: what a sweep gave the run, {"cpus": cores, "gpus": a share
    or a number}; null where nobody shared out.  `data`: what was taken from the config's `data` (files, bytes, tokens,
    width of the ids on disk) and what was skipped; null for batches of one's own.  `coverage`: which share of the
    FLOPs of the model's matrix products is rounded, {"share", "total_flops", "rounded_flops", "modules": what is left
    out, "note"}; null on `meta`.
    `end` is end.json or None.  Both were checked when they were read, see `records`.
    `damage`: parts that could not be read so far, and why.
    """

    folder: Folder
    info: Mapping[str, Any]
    end: Mapping[str, Any] | None
    damage: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.info.get("run") or self.folder.name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.info["config"]

    @property
    def rounded_share(self) -> float | None:
        """Share of the FLOPs of the model's matrix products that is rounded; None where it was not measured."""
        coverage = self.info.get("coverage")
        share = coverage.get("share") if isinstance(coverage, dict) else None
        return float(share) if isinstance(share, int | float) and not isinstance(share, bool) else None

    @property
    def loss_unit(self) -> str:
        """`nats` for the cross-entropy of a known vocabulary; "" where nobody knows the unit of the loss."""
        return "nats" if self.info.get("vocabulary", 0) is not None else ""

    @property
    def verdict(self) -> Verdict | None:
        """The collapse verdict of a run that has ended with one."""
        found = None if self.end is None else self.end["verdict"]
        return None if found is None else Verdict(**{name: found[name] for name in Verdict.__dataclass_fields__})

    @property
    def status(self) -> Status:
        """From end.json; without one `running`, or `killed` where its process is gone."""
        if self.end is not None:
            return self.end["status"]
        return "killed" if self.life == "dead" else "running"

    @property
    def life(self) -> Life:
        """Of a run without an end record: whether its process is there, is late with a sign of life, or is gone."""
        lease = read_lease(self.folder)
        if lease is not None:
            return life_of(self.folder, lease)
        if self.info.get("owner"):  # it has let its lease go: at its end, which this object may have been read before
            return "running" if self.folder.has(END) else "dead"
        newest = max((info.mtime_ns or 0 for info in (self.folder / "steps").list()), default=0) / 1e9
        return "running" if time.time() - max(newest, float(self.info["started"])) < _SILENT_SECONDS else "dead"

    def table(self, name: TableName, columns: Sequence[str] | None = None) -> pa.Table:
        """One table, rows in order of step, each row's latest attempt only; `columns` besides the key columns.

        A part that cannot be read is left out, and `damage` says so.
        """
        table, broken = read_rows(self.folder, name, columns)
        self.damage.update({f"{name}/{part}": reason for part, reason in broken.items()})
        return table

    def damage_sentences(self) -> list[str]:
        """What was left out of the tables read so far, a line each."""
        return [f"{self.name}: {part} is left out: {reason}" for part, reason in sorted(self.damage.items())]


def read_run(folder: Folder) -> Run:
    """The run in a folder.  Raises FileNotFoundError where there is none, RecordError (a ValueError), OSError."""
    return Run(folder, read_start(folder), read_end(folder))


def list_runs(sweep: Folder) -> tuple[list[Run], dict[str, str]]:
    """The runs of a sweep folder by name, and for each folder that cannot be read a sentence saying why."""
    folders = [
        sweep / info.base_name
        for info in sweep.list()
        if info.type == pafs.FileType.Directory and not info.base_name.startswith(".")
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_run_or_reason, folders))
    broken = {folder.name: one for folder, one in zip(folders, found, strict=True) if isinstance(one, str)}
    return [one for one in found if isinstance(one, Run)], broken


def _run_or_reason(folder: Folder) -> Run | str | None:
    """The run, or why it cannot be read; None for a folder that holds none."""
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

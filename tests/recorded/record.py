"""`python -m tests.recorded.record`: train the recorded sweeps and pack what pages read of them.

`default` is the default sweep with the smallest model and half the steps.  `choices` has two learning rates and an
intervention.  Left out: checkpoints, W&B, and where many runs would repeat each other their layers and tensors.  Floats
have the precision of float32, and what names the machine is replaced.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from altgrad.results import SCHEMAS
from tests.recorded import ARCHIVE

ROOT = Path(__file__).parents[2]
_SIZE = ["--model", "micro", "--max-concurrent", "2", "--wandb", "disabled", "--set", "eval_interval=20"]
SWEEPS = {
    "default": ["--max-steps", "240", *_SIZE],
    "choices": ["--max-steps", "80", *_SIZE, "diagnostic_interval=20", "master_weights=false", "--formats", "E4M3",
                "E7M0", "--lr", "6e-4", "2.4e-3", "--interventions", "none", "stochastic"],
}  # fmt: skip
_LAYERS_OF = re.compile(r"bf16|stored|unscaled|e7m0_uniform")  # the collapsed ones and those beside them
_TENSORS_OF = re.compile(r"bf16_baseline|e[47]m[03]_stored")
_LEFT_OUT = {"checkpoints", "wandb"}
_OF_THE_MACHINE = {"host": "worker-1", "git_commit": None, "owner": "recorded", "cpu": "a CPU"}


def main() -> None:
    """Train, tidy and pack."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "results")
        for name, options in SWEEPS.items() if not results.exists() else ():
            command = [sys.executable, str(ROOT / "tune" / "sweep.py"), "--results", str(results), "--name", name]
            subprocess.run([*command, *options], cwd=folder, check=True)
        tidy = Path(folder, "tidy")
        for name in SWEEPS:
            _copy(results / name, tidy / name, name)
        _check(tidy)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            for path in sorted(tidy.rglob("*")):
                if path.is_file():
                    archive.add(path, str(path.relative_to(tidy)), filter=_anonymous)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1e3:.0f} kB")


def _copy(source: Path, target: Path, sweep: str) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if path.is_dir() or _LEFT_OUT & set(place.parts) or place.name in ("lease.json", "sweep.log"):
            continue
        table, run = place.parent.name, place.parts[0]
        if table in SCHEMAS:
            kept = {"layers": _LAYERS_OF, "tensors": _TENSORS_OF}.get(table)
            if kept is None or kept.search(run):
                _part(path, target / place, table)
        elif path.suffix == ".json":
            text = json.dumps(_anonymised(json.loads(path.read_text())), indent=1)
            text = re.sub(
                r"python [^ \"]*tune/sweep\.py[^\"]*", f"python tune/sweep.py {' '.join(SWEEPS[sweep])}", text
            )
            _write(target / place, text.encode())
        elif path.suffix == ".md" and len(place.parts) > 1:
            _write(target / place, path.read_bytes())


def _part(source: Path, target: Path, table: str) -> None:
    """The rows of a part with float32's precision, packed as tightly as parquet can."""
    rows, floats = pq.read_table(source), []
    for at, field in enumerate(rows.schema):
        if field.type == pa.float64() and field.name not in ("time",):
            column = rows[field.name].cast(pa.float32(), safe=False).cast(pa.float64())
            rows = rows.set_column(at, field, column)
            floats.append(field.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, target, compression="zstd", compression_level=19, use_dictionary=False,
                   use_byte_stream_split=floats, write_statistics=False)  # fmt: skip


def _anonymised(value: object) -> object:
    if isinstance(value, dict):
        return {name: _OF_THE_MACHINE.get(name, _anonymised(one)) for name, one in value.items()}
    return [_anonymised(one) for one in value] if isinstance(value, list) else value


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _check(folder: Path) -> None:
    """No file names this machine or one of its folders."""
    told = [socket.gethostname(), str(ROOT), str(Path.home()), tempfile.gettempdir()]
    for path in folder.rglob("*"):
        found = [word for word in told if len(word) > 3 and path.is_file() and word.encode() in path.read_bytes()]
        assert not found, f"{path} names {found}"


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()

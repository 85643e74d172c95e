"""`python -m tests.cuda_code.generate FOLDER`: what Inductor generates for an H100 from each rounding mode.

Writes kernels.json: of each mode the number of launches, the bytes read and written per value, and of each kernel the
bytes spilled, instructions of interest and the values that a single program reduces; and sources.json, for `interpret`.
"""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode

from altgrad.quantization.kernel.compiled import _graph
from altgrad.quantization.kernel.scaled_rounding import Mode
from tests.cuda_code.modes import MODES, SPEC_LENGTH
from tests.cuda_code.pretended_gpu import Found, Generated, assembly, pretend

_PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)
_HEADER = re.compile(r"^\.(?:version|target|address_size) .*$", re.MULTILINE)
_ONCE = re.compile(r"^\.extern \.shared .*$", re.MULTILINE)
_PROPERTIES = re.compile(
    r"properties for kernel(\d+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_UNWANTED = re.compile(r"\.ftz|\.approx|div\.full")
_GLOBAL = re.compile(r"^\s+(?:@!?%p\d+\s+)?((?:ld|st)\.global[\w.:]*)", re.MULTILINE)


def main(folder: Path, compiled_for: tuple[int, int], interpreted: tuple[int, int]) -> None:
    """Kernels are generated twice: of one shape they are compiled, of the other `interpret` runs them."""
    gc.disable()  # a compiler makes many objects and few cycles
    found = pretend()
    described = {name: _generated(found, compiled_for, *MODES[name]) for name in MODES}
    kernels = {name: _KERNEL.findall(mode.pop("code")) for name, mode in described.items()}
    assembled = {source: assembly(name, source) for found in kernels.values() for name, source in found}
    spilled = dict(zip(assembled, _spilled(list(assembled.values())), strict=True))
    for mode, mine in kernels.items():
        described[mode]["kernels"] = [
            _kernel(name, source, assembled[source], spilled[source]) for name, source in mine
        ]
    (folder / "kernels.json").write_text(json.dumps(described))
    sources = {name: _generated(found, interpreted, *MODES[name])["code"] for name in MODES}
    (folder / "sources.json").write_text(json.dumps({"shape": interpreted, "sources": sources}))


def _generated(found: list[Found], shape: tuple[int, int], mode: Mode, counting: bool) -> dict[str, Any]:
    """Source, number of launches, and bytes read and written per value, of one rounding."""
    found.clear()
    torch._dynamo.reset()
    with FakeTensorMode(), torch.no_grad(), suppress(Generated):
        x = torch.empty(shape, device="cuda")
        spec = torch.empty(SPEC_LENGTH, dtype=torch.int32, device="cuda")
        key = torch.empty(2, dtype=torch.int32, device="cuda")
        _graph(mode, counting)(x, spec, key)
    (graph,) = found
    return {"code": graph.code, "bytes": graph.moved / x.numel(), "launches": graph.launches}


def _kernel(name: str, source: str, ptx: str, spilled: int) -> dict[str, Any]:
    sizes = dict(re.findall(r"'(\w+)': (\d+)", re.search(r"size_hints=\{(.*?)\}", source).group(1)))
    reduced = math.prod(int(size) for axis, size in sizes.items() if axis.startswith("r"))
    return {
        "name": name,
        "sizes": {axis: int(size) for axis, size in sizes.items()},
        "reduced_by_one_program": reduced if int(sizes.get("x", 1)) == 1 else 0,
        "spilled": spilled,
        "unwanted": sorted({line.strip() for line in ptx.splitlines() if _UNWANTED.search(line)}),
        "accesses": dict(Counter(_GLOBAL.findall(ptx))),
    }


def _spilled(kernels: list[str]) -> list[int]:
    """Bytes of the stack, and of spilled registers, of each kernel (PTX): all are compiled at once, in half a second.

    Alone each takes as long, since ptxas is slow to start.
    """
    header = _HEADER.findall(kernels[0])
    bodies = [_alone(ptx, number) for number, ptx in enumerate(kernels)]
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder) / "together.ptx"
        together.write_text("\n".join([*header, ".extern .shared .align 16 .b8 global_smem[];", *bodies]))
        command = [
            _PTXAS,
            "-v",
            "--regAllocOptLevel=2",
            "--gpu-name=sm_90a",
            together,
            "-o",
            together.with_suffix(".cubin"),
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = {int(number): sum(map(int, sizes)) for number, *sizes in _PROPERTIES.findall(said)}
    return [found[number] for number in range(len(kernels))]


def _alone(ptx: str, number: int) -> str:
    """The PTX of a kernel without what a file may have once, and with names of its own."""
    name = re.search(r"\.entry (\w+)\(", ptx).group(1)
    ptx = ptx.replace(name, f"kernel{number}").replace("_$_", f"_{number}_$_")
    return _ONCE.sub("", _HEADER.sub("", ptx))


if __name__ == "__main__":
    main(Path(sys.argv[1]), (4096, 4096), (33, 160))

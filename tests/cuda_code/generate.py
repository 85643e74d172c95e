"""`python -m tests.cuda_code.generate FOLDER`: what Inductor generates for an H100 from each rounding mode.

Writes kernels.json: of each mode the number of launches, the bytes read and written per value, and of each kernel the
bytes spilled, instructions of interest and the values that a single program reduces; and sources.json, for `interpret`.
"""

from __future__ import annotations

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
from torch._inductor.codecache import PyCodeCache
from torch._subclasses.fake_tensor import FakeTensorMode

from altgrad.quantization.kernel.compiled import _graph
from altgrad.quantization.kernel.scaled_rounding import Mode
from tests.cuda_code.modes import MODES, SPEC_LENGTH
from tests.cuda_code.pretended_gpu import Generated, pretend

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)
_UNWANTED = re.compile(r"\.ftz|\.approx|div\.full")
_GLOBAL = re.compile(r"^\s+(?:@!?%p\d+\s+)?((?:ld|st)\.global[\w.:]*)", re.MULTILINE)


def main(folder: Path, compiled_for: tuple[int, int], interpreted: tuple[int, int]) -> None:
    """Kernels are generated twice: of one shape they are compiled, of the other `interpret` runs them."""
    found = pretend()
    described = {name: _generated(found, compiled_for, *MODES[name]) for name in MODES}
    for mode in described.values():
        mode["kernels"] = [_kernel(name, source) for name, source in _KERNEL.findall(mode.pop("code"))]
    (folder / "kernels.json").write_text(json.dumps(described))
    sources = {name: _generated(found, interpreted, *MODES[name])["code"] for name in MODES}
    (folder / "sources.json").write_text(json.dumps({"shape": interpreted, "sources": sources}))


def _generated(found: list[tuple[str, int]], shape: tuple[int, int], mode: Mode, counting: bool) -> dict[str, Any]:
    """Source, number of launches, and bytes read and written per value, of one rounding."""
    found.clear()
    torch._dynamo.reset()
    with FakeTensorMode(), torch.no_grad(), suppress(Generated):
        x = torch.empty(shape, device="cuda")
        spec = torch.empty(SPEC_LENGTH, dtype=torch.int32, device="cuda")
        key = torch.empty(2, dtype=torch.int32, device="cuda")
        _graph(mode, counting)(x, spec, key)
    ((code, moved),) = found
    return {"code": code, "bytes": moved / x.numel(), "launches": len(re.findall(r"\.run\(", code))}


def _kernel(name: str, source: str) -> dict[str, Any]:
    tuner = getattr(PyCodeCache.load(source), name)
    compiled = tuner._precompile_config(tuner.configs[0]).kernel
    ptx = compiled.asm["ptx"]
    sizes = dict(re.findall(r"'(\w+)': (\d+)", re.search(r"size_hints=\{(.*?)\}", source).group(1)))
    reduced = math.prod(int(size) for axis, size in sizes.items() if axis.startswith("r"))
    return {
        "name": name,
        "sizes": {axis: int(size) for axis, size in sizes.items()},
        "reduced_by_one_program": reduced if int(sizes.get("x", 1)) == 1 else 0,
        "spilled": _spilled(compiled.asm["cubin"]),
        "unwanted": sorted({line.strip() for line in ptx.splitlines() if _UNWANTED.search(line)}),
        "accesses": dict(Counter(_GLOBAL.findall(ptx))),
    }


def _spilled(cubin: bytes) -> int:
    """Bytes of local memory per thread, in which registers that do not suffice are kept."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "-res-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
    stack, local = re.search(r"STACK:(\d+).*?LOCAL:(\d+)", said.stdout + said.stderr).groups()
    return int(stack) + int(local)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (4096, 4096), (33, 160))

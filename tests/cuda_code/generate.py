"""`python -m tests.cuda_code.generate FOLDER`: what Inductor generates for an H100 from each rounding mode,
and from several roundings in one graph.

Writes kernels.json: of each case the number of launches, the bytes read and written per value, and of each kernel the
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
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from altgrad.quantization.kernel.compiled import _graph, inductor_options
from altgrad.quantization.kernel.scaled_rounding import rounded_with_counts
from tests.cuda_code.modes import CASES, SPEC_LENGTH, Case
from tests.cuda_code.pretended_gpu import Found, Generated, assembly, pretend

_PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)'''", re.DOTALL)
_HEADER = re.compile(r"^\.(?:version|target|address_size) .*$", re.MULTILINE)
_ONCE = re.compile(r"^\.extern \.shared .*$", re.MULTILINE)
_PROPERTIES = re.compile(
    r"properties for kernel(\d+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_UNWANTED = re.compile(r"\.ftz|\.approx|div\.full")
_SIZES = re.compile(r"'?size_hints(?:_\d+)?'?[=:] ?\{(.*?)\}")
_GLOBAL = re.compile(r"^\s+(?:@!?%p\d+\s+)?((?:ld|st)\.global[\w.:]*)", re.MULTILINE)


def main(folder: Path) -> None:
    """Kernels are generated twice: of large tensors they are compiled, those of small ones `interpret` runs."""
    gc.disable()  # a compiler makes many objects and few cycles
    found = pretend()
    described = {name: _generated(found, case, case.compiled_for) for name, case in CASES.items()}
    kernels = {name: _KERNEL.findall(graph.pop("code")) for name, graph in described.items()}
    assembled = {source: assembly(name, source) for found in kernels.values() for name, source in found}
    spilled = dict(zip(assembled, _spilled(list(assembled.values())), strict=True))
    for case, mine in kernels.items():
        described[case]["kernels"] = [
            _kernel(name, source, assembled[source], spilled[source]) for name, source in mine
        ]
    (folder / "kernels.json").write_text(json.dumps(described))
    sources = {
        name: _generated(found, case, case.interpreted)["code"] for name, case in CASES.items() if case.interpreted
    }
    (folder / "sources.json").write_text(json.dumps(sources))


def _generated(found: list[Found], case: Case, shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Source, number of launches, and bytes read and written per value, of a graph of tensors of these shapes."""
    found.clear()
    torch._dynamo.reset()
    with FakeTensorMode(), torch.no_grad(), suppress(Generated):
        xs = [torch.empty(shape, device="cuda") for shape in shapes]
        spec = torch.empty(SPEC_LENGTH, dtype=torch.int32, device="cuda")
        key = torch.empty(2, dtype=torch.int32, device="cuda")
        if len(case.modes) == 1:
            _graph(case.modes[0], case.counting)(*xs, spec, key)
        else:
            options = inductor_options(spec.device)
            torch.compile(partial(_several, case), dynamic=False, options=options)(xs, spec, key)
    (graph,) = found
    return {"code": graph.code, "bytes": graph.moved / sum(x.numel() for x in xs), "launches": graph.launches}


def _several(case: Case, xs: list[Tensor], spec: Tensor, key: Tensor) -> list[tuple[Tensor, ...]]:
    """As the layers of a model do in one graph."""
    history = torch.zeros(0, dtype=torch.float32, device=spec.device)
    rounded = [
        rounded_with_counts(x, spec, history, key, mode, in_bits=True) for x, mode in zip(xs, case.modes, strict=True)
    ]
    return [(values, torch.stack(counts)) if case.counting else (values,) for values, counts in rounded]


def _kernel(name: str, source: str, ptx: str, spilled: int) -> dict[str, Any]:
    return {
        "name": name,
        "reduced_by_one_program": _reduced_alone(source),
        "spilled": spilled,
        "unwanted": sorted({line.strip() for line in ptx.splitlines() if _UNWANTED.search(line)}),
        "accesses": dict(Counter(_GLOBAL.findall(ptx))),
    }


def _reduced_alone(source: str) -> int:
    """The most values that a single program reduces, in any of the kernels that are launched together."""
    most = 0
    for written in _SIZES.findall(source):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)': (\d+)", written)}
        if sizes.get("x", 1) == 1:
            most = max(most, math.prod(size for axis, size in sizes.items() if axis.startswith("r")))
    return most


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
    main(Path(sys.argv[1]))

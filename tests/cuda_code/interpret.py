"""`python -m tests.cuda_code.interpret FOLDER`: runs the generated kernels in Triton's interpreter, on the CPU.

Reads sources.json, and prints one line of JSON: per case and format, values and counts that differ from the eager
kernel's.  Outputs are filled with NaN before, so that a value which no kernel writes differs.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers

from altgrad.formats import FORMATS, NumberFormat
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, rounded_with_counts
from tests.cuda_code.modes import CASES
from tests.references.rounding_inputs import critical_points, million

_FORMATS = ("E4M3", "E0M7", "E7M0")
_BLOCKS = {  # a few programs and passes of each, the last ones not full
    "pointwise": {"XBLOCK": 2048},
    "persistent_reduction": {"XBLOCK": 64},
    "reduction": {"XBLOCK": 16, "R0_BLOCK": 64},
}
_SHAPE = re.compile(r"assert_size_stride\((arg\d+_1), (\([\d, ]+\))")
_DECORATOR = re.compile(r"@triton_heuristics\.(\w+)\(.*?\n\)\n(?=@triton\.jit)", re.DOTALL)


class _Driver:
    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Kernel:
    """One generated kernel, interpreted program by program."""

    def __init__(self, name: str, source: str, folder: Path) -> None:
        self._kind = _DECORATOR.search(source).group(1)
        self._together = _programs_together(source)
        file = folder / f"{name}_{abs(hash(source))}.py"
        file.write_text(_DECORATOR.sub("", source).replace("libdevice.floor", "tl.floor"))
        names: dict[str, Any] = {"__name__": name, "__file__": str(file)}
        exec(compile(file.read_text(), str(file), "exec"), names)
        self._function = names[name]
        self._parameters = self._function.arg_names

    def run(self, *arguments: Any, stream: Any = None) -> None:
        if self._together:
            self._function[(self._together,)](*arguments)
            return
        sizes = {name: size for name, size in _BLOCKS[self._kind].items() if name in self._parameters}
        number = arguments[self._parameters.index("xnumel")]
        self._function[(math.ceil(number / sizes["XBLOCK"]),)](*arguments, **sizes)


def _programs_together(source: str) -> int:
    """The programs of kernels that are launched together, each with its own sizes; 0 for a kernel alone."""
    meta = dict(re.findall(r"'(xnumel_\d+|XBLOCK_\d+)': (\d+)", source))
    numbers = (name.removeprefix("xnumel_") for name in meta if name.startswith("xnumel_"))
    return sum(math.ceil(int(meta[f"xnumel_{number}"]) / int(meta[f"XBLOCK_{number}"])) for number in numbers)


def wrapper(code: str, folder: Path) -> Any:
    """The generated function `call` with its kernels interpreted and its memory on the CPU."""

    class Compiler:
        def triton(self, name: str, source: str, device_str: str | None = None) -> _Kernel:
            return _Kernel(name, source, folder)

        def wait(self, names: Any) -> None:
            pass

    def empty(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
        made = torch.empty_strided(size, stride, dtype=dtype)
        return made.fill_(float("nan") if dtype.is_floating_point else 0x7FABCDEF)

    for found, instead in (
        (r"async_compile = AsyncCompile\(\)", "async_compile = _Compiler()"),
        (r"with torch\.cuda\._DeviceGuard\(0\):", "with _nothing():"),
        (r"torch\.cuda\.set_device\(0\)", "pass"),
        (r"^(\s*)raw_stream0 = .*$", r"\1raw_stream0 = 0"),
        (r"^.*import.*raw_stream.*$", ""),
        (r"^empty_strided_cuda = .*$", "empty_strided_cuda = _empty"),
    ):
        code = re.sub(found, instead, code, flags=re.MULTILINE)
    names: dict[str, Any] = {"__name__": "wrapper", "_Compiler": Compiler, "_nothing": nullcontext, "_empty": empty}
    exec(compile(code, "wrapper", "exec"), names)
    return names["call"]


@triton.jit
def _max2(a, dim):  # the generated one combines element by element, which takes the interpreter minutes
    return tl.max(a, dim)


def main(folder: Path) -> None:
    triton.runtime.driver.set_active(_Driver())
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_helpers.max2 = _max2
    torch.set_num_threads(1)
    sources = json.loads((folder / "sources.json").read_text())
    differing = {}
    for name, code in sources.items():
        call, case = wrapper(code, folder), CASES[name]
        order = re.search(r"^ +(.*?),? = args$", code, re.MULTILINE).group(1).split(", ")
        for fmt in (FORMATS[label] for label in _FORMATS):
            xs = [_values(fmt, shape, mode) for mode, shape in zip(case.modes, case.interpreted, strict=True)]
            spec, key = spec_of(fmt, 12345), torch.tensor([123456789, 987654321], dtype=torch.int32)
            by_shape = {tuple(tensor.shape): tensor for tensor in [*xs, spec, key]}
            given = {argument: by_shape[ast.literal_eval(shape)] for argument, shape in _SHAPE.findall(code)}
            found = call([given[argument] for argument in order])
            expected = []
            for x, mode in zip(xs, case.modes, strict=True):
                values, counts = rounded_with_counts(x, spec, torch.zeros(0), key, mode)
                expected += [values, torch.stack(counts)] if case.counting else [values]
            differing[f"{name} {fmt.name}"] = sum(
                int((_bits(one) != _bits(other)).sum()) for one, other in zip(found, expected, strict=False)
            )
    print(json.dumps(differing))


def _values(fmt: NumberFormat, shape: tuple[int, int], mode: Mode) -> torch.Tensor:
    """Critical points of the format beside random ones; of a mode with scales also NaN, inf and 0 in the first row."""
    number = math.prod(shape)
    points = torch.from_numpy(critical_points(fmt)[: number // 2])
    x = torch.cat([points, torch.from_numpy(million(fmt)[250_000:])])[:number]
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))].view(shape).contiguous()
    if mode.scaling != "none":  # else every amax is the largest float32
        x = torch.where(x.abs() < 1e30, x, x.sign() * 3)
        x[0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
    return x


def _bits(x: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(x), torch.nan, x).view(torch.int32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

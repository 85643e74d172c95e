"""What an H100 would run: launches, bytes, instructions and numbers of the generated kernels, without a GPU.

Inductor generates Triton code from our rounding for a GPU that is not there, ptxas compiles it for sm_90, and Triton's
interpreter runs it.  Times need a device; what is counted here is the same on every machine.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_code.process import KEPT, run, why_not

COUNTED = ["nearest", "stochastic", "tensor", "row", "1x32", "1x32 first"]
UNCOUNTED = [*COUNTED, "tensor by columns"]
SCALED_IN_TILES = ["1x32", "1x32 first"]

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.xdist_group("cuda_code"),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cuda_code")
    run("generate", made)
    return made


@pytest.fixture(scope="module")
def modes(folder: Path) -> dict[str, Any]:
    """Mode -> its launches, bytes per value of a 4096 x 4096 tensor, and kernels."""
    return json.loads((folder / "kernels.json").read_text())


def test_rounding_reads_and_writes_each_value_once_and_an_amax_reads_it_once_more(modes):
    bytes_of = {name: modes[name]["bytes"] for name in UNCOUNTED}
    expected = {"nearest": 8, "stochastic": 8, "tensor": 12, "row": 8, "1x32": 8, "1x32 first": 12.5}
    expected["tensor by columns"] = 12.064  # and parts of columns, from many programs
    assert bytes_of == pytest.approx(expected, rel=1e-3)
    assert {name: modes[name]["launches"] for name in UNCOUNTED} == {
        "nearest": 1, "stochastic": 2, "tensor": 3, "tensor by columns": 4, "row": 1, "1x32": 1, "1x32 first": 2,
    }  # fmt: skip


@pytest.mark.parametrize("mode", COUNTED)
def test_counts_cost_few_launches_and_bytes(modes, mode):
    """One launch, two where half a million tiles are reduced in two stages."""
    plain, counted = modes[mode], modes[f"{mode}, counts"]
    assert counted["launches"] - plain["launches"] <= (2 if mode in SCALED_IN_TILES else 1)
    assert counted["bytes"] - plain["bytes"] <= (1.01 if mode in SCALED_IN_TILES else 0.02)


def test_the_counts_of_several_roundings_are_reduced_together(modes):
    """Five roundings in one graph: one launch for the short reductions of their counts, and one for the long ones."""
    plain, counted = modes["several"], modes["several, counts"]
    assert counted["launches"] - plain["launches"] == 2


def test_no_program_reduces_a_large_tensor_alone(modes):
    for name, mode in modes.items():
        assert max(kernel["reduced_by_one_program"] for kernel in mode["kernels"]) <= 8192, name


def test_no_register_is_spilled_and_no_instruction_is_inexact(modes):
    """Neither flushed subnormals (.ftz) nor approximate functions nor a division that is not IEEE's."""
    for name, mode in modes.items():
        for kernel in mode["kernels"]:
            assert (kernel["spilled"], kernel["unwanted"]) == (0, []), (name, kernel["name"])


@pytest.mark.parametrize("mode", ["nearest", "stochastic", "tensor", "tensor by columns", "row"])
def test_values_are_read_and_written_sixteen_bytes_at_a_time(modes, mode):
    (main,) = [kernel for kernel in modes[mode]["kernels"] if any(".v4." in access for access in kernel["accesses"]
               if access.startswith("st."))]  # fmt: skip
    assert any(re.search(r"^ld\..*\.v4\.b32", access) for access in main["accesses"])


def test_the_interpreted_kernels_round_and_count_as_eager_code_does(folder):
    """33 x 160 values: critical points of the formats, NaN, inf and 0; neither dimension fills its programs."""
    differing = json.loads(run("interpret", folder))
    cases = [*(f"{mode}, counts" for mode in [*COUNTED, "several"]), "nearest", "tensor by columns"]
    assert sorted({name.rpartition(" ")[0] for name in differing}) == sorted(cases)
    assert len(differing) == 3 * len(cases)
    assert set(differing.values()) == {0}, {name: count for name, count in differing.items() if count}


def test_these_runs_are_repeated_when_the_kernel_changes(folder):
    read = [json.loads(file.read_text()) for file in KEPT.glob("*/read.json")]
    assert read
    assert all({"altgrad/quantization/kernel/round.py", "altgrad/formats.py"} <= found.keys() for found in read)

"""What a run takes of its machine: against the kernel's own account, and a driver library built for the test."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from altgrad.experiment.process_load import ProcessUsage
from altgrad.metrics import METRICS
from altgrad.results import read_run
from altgrad.training import run_format_experiment
from tests.support.runs.small_runs import MICRO

CPU = torch.device("cpu")
# Two GPUs: the second is in MIG mode.  UUID GPU-b is 37 % busy with 3 GiB in use.
DRIVER = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } busy_t;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetHandleByUUID(const char *u, void **d) { *d = (void *)2; return strcmp(u, "GPU-b") != 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strcpy(s, "Test GPU"); return 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) { *now = *next = d == (void *)2; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    m->total = 80ull << 30; m->used = 3ull << 30; m->free = 77ull << 30; return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, busy_t *b) { b->gpu = 37; b->memory = 5; return 0; }
"""


def clocks() -> tuple[float, float]:
    return time.perf_counter(), sum(os.times()[:2])


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "asleep"])
def test_cpu_use_is_the_share_of_the_time_since_the_last_sample(busy: bool) -> None:
    """Other clocks, read just outside and just inside of what is sampled, bound it however much others compute."""
    usage = ProcessUsage(CPU)
    outer = clocks()
    usage.sample()
    inner = clocks()
    while busy and sum(os.times()[:2]) < inner[1] + 0.3:
        pass
    time.sleep(0.0 if busy else 0.3)
    (wall, cpu), found, (last_wall, last_cpu) = clocks(), usage.sample()["cpu_utilisation"], clocks()
    tick = 2 / os.sysconf("SC_CLK_TCK")
    assert (cpu - inner[1] - tick) / (last_wall - outer[0]) <= found <= (last_cpu - outer[1] + tick) / (wall - inner[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_what_the_kernel_counts() -> None:
    usage = ProcessUsage(CPU)
    before = usage.sample()["resident_memory"]
    assert before == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.03)
    with mmap.mmap(-1, 128 * 2**20) as pages:  # not from the allocator, which may have memory left
        for _ in range(128):
            pages.write(bytes(2**20))
        # on many cores a kernel's count is behind by MiB, since each core adds up some pages by itself first
        assert usage.sample()["resident_memory"] - before == pytest.approx(128, rel=0.5)


def test_a_run_samples_at_its_report_interval_and_at_no_other_step(tmp_path: Path) -> None:
    result = run_format_experiment(MICRO.altered(max_steps=12), tmp_path / "run", report_interval=5)
    table = read_run(result.folder).table("steps", ["cpu_utilisation", "resident_memory", "gpu_memory"]).to_pandas()
    for name in ("cpu_utilisation", "resident_memory"):
        assert table["step"][table[name].notna()].tolist() == [5, 10]
    if not torch.cuda.is_available():
        assert table["gpu_memory"].isna().all()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_the_driver_is_asked_for_names_sizes_and_load(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    program = (
        "import json, dataclasses; from altgrad.experiment import gpu_driver as nvml; plain = dataclasses.asdict;"
        "print(json.dumps([[plain(g) for g in nvml.gpus()], plain(nvml.load('GPU-b')), nvml.load('GPU-x')]))"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    found, load, unknown = json.loads(shown.stdout)
    assert found == [{"name": "Test GPU", "memory": 80 << 30}, {"name": "Test GPU", "memory": None}]
    assert load == {"utilisation": 0.37, "memory": 3 << 30} and unknown is None


def test_units_of_what_is_sampled_are_declared() -> None:
    units = {name: METRICS[name].unit for name in ProcessUsage(CPU).sample()}
    assert units == {"cpu_utilisation": "cores", "resident_memory": "MiB"}

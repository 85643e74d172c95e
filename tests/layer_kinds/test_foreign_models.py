"""Models of other libraries: what is rounded of them, counted twice, and that they train."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.other_libraries import FRAMEWORKS, ROOT, VISION, environment_with
from tests.support.rounding.foreign_models import MODELS


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a process that finds the libraries printed."""
    command = [sys.executable, "-m", "tests.support.rounding.foreign_models"]
    environment = environment_with(FRAMEWORKS, VISION)
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_what_is_measured_is_what_a_count_of_bits_finds_and_nearly_all_of_each_model(found: dict[str, Any]) -> None:
    assert len(MODELS) == 23 and found.keys() == MODELS.keys() | {"trained"}
    for name in MODELS:
        share, counted, left, note, alike, foretold, with_attention = found[name]
        assert with_attention == pytest.approx(foretold, abs=1e-9) and with_attention >= share, name
        assert counted == pytest.approx(share, abs=0.005) and note == "" and alike, name
        if name != "mamba":  # its scan is a product by hand
            assert left <= 0.05 and share >= 0.85, (name, share, left)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_models_of_torchvision_and_timm_learn_to_read_digits(found: dict[str, Any]) -> None:
    for name, (first, *_, last, accuracy) in found["trained"].items():
        assert last < first and accuracy > 0.2, name

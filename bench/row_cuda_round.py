"""On a GPU: rounding as a share of the bandwidth of a copy; 85 % of it is 1.18 times the copy's time."""

import torch

from altgrad.formats import find_format
from altgrad.quantization.compiled import compiled_round
from bench.harness import Row, cuda_device, cuda_ratio

_SHAPE = (32768, 4096)  # 512 MiB: ten times the largest cache


def _measure(pairs: int) -> float:
    x, fmt = torch.randn(_SHAPE, device=cuda_device()), find_format("E4M3")
    return cuda_ratio(lambda: compiled_round(x, fmt), x.clone, pairs)


ROW = Row("GPU: round 2^27 float32, nearest (x clone)", 1.18, _measure)

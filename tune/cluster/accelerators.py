"""Memory of a Ray cluster's GPUs by their type, because the sweep's process may have no GPU itself.

Ray derives a resource such as `accelerator_type:H100` of a node from the GPU driver's name.  For a type that was sold
in several sizes the smallest counts; the memory of an unlisted type is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tune.plan.resources.gpu_memory import GIB

_PREFIX = "accelerator_type:"
# GiB that the driver reports, rounded down: somewhat less than what is printed on the card.
MEMORY: Mapping[str, int] = {
    "K80": 11,
    "P4": 7,
    "P100": 11,
    "V100": 15,
    "T4": 14,
    "A10": 22,
    "A10G": 22,
    "A30": 23,
    "A40": 44,
    "A100": 39,
    "A100-40G": 39,
    "A100-80G": 79,
    "L4": 22,
    "L40": 44,
    "L40S": 44,
    "H20": 95,
    "H100": 79,
    "H200": 139,
    "B200": 178,
}


def smallest_gpu(nodes: Iterable[Mapping[str, float]]) -> int | None:
    """Bytes of the smallest GPU, from each node's resources; None if there is none or a type is unknown."""
    sizes = []
    for resources in nodes:
        if resources.get("GPU"):
            types = [name.removeprefix(_PREFIX) for name in resources if name.startswith(_PREFIX)]
            known = [MEMORY[kind] for kind in types if kind in MEMORY]
            if not known or len(known) < len(types):
                return None
            sizes.append(min(known))
    return min(sizes) * GIB if sizes else None

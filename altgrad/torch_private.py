"""All that is taken from inside torch, without a promise that it stays: its purpose, and what public thing it replaces.

Nothing else here uses a private name of torch.  A test asks for every piece and says in words which has gone.  A name
is looked up when its function is called: an absent one breaks only what needs it, and importing this file loads no
compiler.  Dynamo traces through the functions, so that they add nothing to a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # sees every operation; no public class


def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """The product of two float8 matrices, times both scales, in float32 with float32 sums.

    `torch.matmul` takes no float8.  The public `torch.nn.functional.scaled_mm` is another operator, which has not been
    compared with this one on tensor cores.
    """
    return torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.float32, use_fast_accum=False)


def largest_magnitudes(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """max|x| of each tensor, NaN if it holds one; a few kernels, where a public norm per tensor is one each."""
    return tuple(torch._foreach_norm(list(tensors), torch.inf))


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target in a few kernels, where the public `Tensor.copy_` is one each."""
    torch._foreach_copy_(list(targets), list(sources))


def largest_over_group(value: Tensor, group_name: str) -> Tensor:
    """Elementwise maximum over a process group as a new tensor; the public `dist.all_reduce` writes in place."""
    found = torch.ops._c10d_functional.all_reduce(value, "max", group_name)
    return torch.ops._c10d_functional.wait_tensor(found)


def in_backward() -> bool:
    """Whether this thread runs a backward pass, as a recomputation under checkpointing does; no public question."""
    return torch._C._current_graph_task_id() != -1


@torch.compiler.assume_constant_result
def traced_in_backward() -> bool:
    """The same in code that is being compiled: whether it is compiled within a backward pass, noted in its graph."""
    return in_backward()


def backward_pass_number() -> int:
    """A number of the backward pass that this thread runs, another for one that runs within it; -1 outside."""
    return int(torch._C._current_graph_task_id())


def keep_until_backward_ends(held: object) -> None:
    """Keep an object alive until the backward pass that runs has ended, also by an error; no public hook tells that."""

    def ended(kept: object = held) -> None:
        """Called at the end, and dropped with the pass."""

    torch.autograd.Variable._execution_engine.queue_callback(ended)


def in_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp) is active; torch.func has no public question for it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def without_derivative(outputs: Sequence[Tensor | None], message: bytes) -> tuple[Tensor | None, ...]:
    """The outputs; differentiating through one raises RuntimeError(message).

    The public `once_differentiable` does the same with a message of its own, which names neither reason nor way out.
    """
    refusal = torch._C._functions.DelayedError(message, 1)
    return tuple(None if out is None else refusal(out.detach().requires_grad_()) for out in outputs)


def next_node_number() -> int:
    """Sequence number that the next autograd node of this thread gets; public nodes do not tell their order."""
    return torch.autograd._get_sequence_nr()


def running_node_number() -> int | None:
    """Sequence number of the autograd node whose backward runs in this thread; None outside a backward pass.

    The public `Node.register_hook` would tell it for nodes that are known beforehand only.
    """
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())


def writes_an_argument(operation: Any) -> bool:
    """Whether an operation that a TorchDispatchMode sees writes to an argument; its schema has no public name."""
    return bool(operation._schema.is_mutable)


def tensors_in(arguments: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts; torch has no public walk over them."""
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def storage_key(tensor: Tensor) -> int:
    """The same number for tensors that share storage; the public `data_ptr()` is 0 for every empty one."""
    return int(tensor.untyped_storage()._cdata)


def version_of(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor so far; comparing copies, the public way, would need a transfer."""
    return tensor._version


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own table of its buffers; the public `named_buffers` leaves out those that are None."""
    return module._buffers


@contextmanager
def without_onednn() -> Iterator[None]:
    """Context without oneDNN; the public `torch.backends.mkldnn.flags` also sets TF32, which warns on most CPUs."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def compiler_failure() -> type[Exception]:
    """What a compiled function raises if the compiler fails, with its loss left undone; it has no public class."""
    return torch._dynamo.exc.BackendCompilerFailed


def compiler_settings() -> tuple[Any, Any]:
    """Settings of Dynamo and of AOTAutograd: the limit of graphs per code object and the use of the disk cache.

    The public `torch.compiler.config` has neither.
    """
    import torch._functorch.config  # imported only if needed: it takes half a second

    return torch._dynamo.config, torch._functorch.config


_MOST_TOGETHER = 48  # kernels in one launch; as an option it also tells our graphs from those of others
_SMALL = 2 << 20  # bytes: an H100 reads as many in the time of a launch


def last_kernels_together() -> dict[str, Any]:
    """Options with which Inductor launches the kernels that compute single numbers at the end of a graph together.

    They are the last reductions of counts on a GPU, one launch each otherwise, and no other kernel waits for them.
    Inductor combines kernels by itself only where they are equally far from the start of a graph.
    """
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(_kernels_to_combine)
    return {
        "combo_kernels": True,
        "combo_kernels_autotune": 0,  # they take a microsecond
        "combo_kernel_per_subkernel_blocks": True,  # else each computes its number 1024 times
        "combo_kernel_max_num_nodes": _MOST_TOGETHER,
        "combo_kernel_peak_memory_pct_threshold": None,  # what they read is small, see `_SMALL`
    }


def _kernels_to_combine(scheduler: Any) -> list[list[Any]]:
    """Groups of kernels, each of which becomes a launch, or two: Inductor parts reductions of more than 2048 values."""
    from torch._inductor import config
    from torch._inductor.scheduler import ForeachKernelSchedulerNode, FusedMixOrderReductions

    if config.combo_kernel_max_num_nodes != _MOST_TOGETHER:
        groups: list[list[Any]] = ForeachKernelSchedulerNode._default_group_nodes_for_combo_kernels(scheduler)
        return groups
    mixed = [node for node in scheduler.nodes if isinstance(node, FusedMixOrderReductions)]
    withheld = {name for node in mixed for name in node.get_buffer_names()}  # Inductor's own rule: some do not exist
    last = [
        node
        for node in scheduler.nodes
        if node.is_reduction()
        and node.is_gpu()
        and node.group[1][0] == 1
        and node.get_read_buffer_sizes() <= _SMALL
        and not withheld & node.used_buffer_names()
        and not _is_awaited(node)
    ]
    return [last[start : start + _MOST_TOGETHER] for start in range(0, len(last), _MOST_TOGETHER)]


def _is_awaited(node: Any) -> bool:
    """Whether another kernel reads what this one writes; views and the output of the graph are none."""
    from torch._inductor.scheduler import NopKernelSchedulerNode, OutputNode

    seen, ahead = {part.get_name() for part in node.get_nodes()}, [node]
    while ahead:
        for user in (user.node for made in ahead.pop().get_outputs() for user in made.users):
            if isinstance(user, OutputNode) or user.get_name() in seen:
                continue
            if not isinstance(user, NopKernelSchedulerNode):
                return True
            seen.add(user.get_name())
            ahead.append(user)
    return False

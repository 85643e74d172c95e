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

"""What is taken from inside torch lies in one file, and each piece is there and does what it is taken for."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch._inductor
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from altgrad import torch_private
from altgrad.quantization.kernel.compiled import inductor_options
from tests.quantization.backward_pieces import (
    a_backward_pass_within_another_has_its_own_number,
    an_object_lives_until_the_backward_pass_ends,
    code_compiled_in_a_backward_pass_knows_it,
)

ROOT = Path(__file__).resolve().parents[2]
THE_FILE = ROOT / "altgrad" / "torch_private.py"
LENT_BY_OTHERS = {"_replace", "_asdict"}  # of named tuples, where they are public


@contextmanager
def one_rank() -> Iterator[str]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD.group_name
    finally:
        dist.destroy_process_group()


def products_of_float8_are_scaled() -> bool:
    a, b = torch.full((16, 32), 1.5), torch.full((32, 16), 0.5)
    a8, b8 = a.to(torch.float8_e4m3fn), b.t().contiguous().to(torch.float8_e4m3fn).t()
    found = torch_private.scaled_mm(a8, b8, torch.tensor(2.0), torch.tensor(4.0))
    return found.dtype == torch.float32 and torch.equal(found, torch.full((16, 16), 32 * 1.5 * 0.5 * 2 * 4))


def magnitudes_keep_nan_and_inf() -> bool:
    found = torch_private.largest_magnitudes([torch.tensor([1.0, -3.0]), torch.tensor([torch.inf, torch.nan])])
    return found[0].item() == 3 and bool(found[1].isnan())


def tensors_are_copied() -> bool:
    targets = [torch.zeros(2), torch.zeros(3)]
    torch_private.copy_each(targets, [torch.ones(2), torch.full((3,), 2.0)])
    return [target.tolist() for target in targets] == [[1.0, 1.0], [2.0, 2.0, 2.0]]


def a_rank_alone_has_the_largest_value() -> bool:
    value = torch.tensor([1.0, -2.0])
    with one_rank() as name:
        found = torch_private.largest_over_group(value, name)
    return torch.equal(found, value) and found.data_ptr() != value.data_ptr()


def a_backward_pass_is_noticed() -> bool:
    seen: list[bool] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(torch_private.in_backward()))
    before = torch_private.in_backward()
    x.sum().backward()
    return (before, seen, torch_private.in_backward()) == (False, [True], False)


def a_transform_is_noticed() -> bool:
    seen: list[bool] = []

    def square(x):
        seen.append(torch_private.in_transform())
        return x * x

    torch.func.grad(square)(torch.tensor(3.0))
    return (seen, torch_private.in_transform()) == ([True], False)


def an_output_refuses_its_derivative() -> bool:
    first, second = torch_private.without_derivative([torch.ones(1), None], b"no second derivative")
    try:
        first.sum().backward()
    except RuntimeError as error:
        return second is None and "no second derivative" in str(error)
    return False


def nodes_are_numbered_in_their_order() -> bool:
    seen: list[int | None] = []
    before = torch_private.next_node_number()
    middle = torch.ones(1, requires_grad=True).exp()
    middle.register_hook(lambda gradient: seen.append(torch_private.running_node_number()))
    after = torch_private.next_node_number()
    middle.sin().sum().backward()
    return before < after and torch_private.running_node_number() is None and before <= seen[0] < after


def operations_that_write_are_told_apart() -> bool:
    aten = torch.ops.aten
    return [torch_private.writes_an_argument(one) for one in (aten.add.Tensor, aten.add_.Tensor)] == [False, True]


def nested_tensors_are_found() -> bool:
    a, b = torch.zeros(1), torch.zeros(2)
    return [id(one) for one in torch_private.tensors_in((a, {"key": [b, 3, None]}))] == [id(a), id(b)]


def views_share_a_key() -> bool:
    x, empty, other = torch.zeros(4), torch.zeros(0), torch.zeros(0)
    keys = [torch_private.storage_key(one) for one in (x, x[1:], empty, other)]
    return keys[0] == keys[1] and len(set(keys)) == 3


def changes_in_place_are_counted() -> bool:
    x = torch.zeros(2)
    before = torch_private.version_of(x)
    x.add_(1)
    return torch_private.version_of(x) == before + 1


def buffers_can_be_put_back() -> bool:
    module = nn.Module()
    module.register_buffer("mask", None)
    torch_private.buffers_of(module)["mask"] = torch.ones(2)
    return torch_private.buffers_of(module)["mask"] is module.mask and [*dict(module.named_buffers())] == ["mask"]


def onednn_is_off_and_on_again() -> bool:
    with torch_private.without_onednn():
        inside = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    return not inside and torch._C._get_mkldnn_enabled()


def a_compiler_that_fails_is_noticed() -> bool:
    def broken(graph, inputs):
        raise ValueError("no code for this")

    try:
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(3))
    except torch_private.compiler_failure():
        return True
    finally:
        torch._dynamo.reset()
    return False


def the_settings_are_there() -> bool:
    dynamo, functorch = torch_private.compiler_settings()
    limit = isinstance(dynamo.recompile_limit, int)
    return limit and isinstance(functorch.autograd_cache_allow_custom_autograd_functions, bool)


def kernels_can_be_combined() -> bool:
    """What the kernels are and whether they are right is asked in tests/cuda_code."""
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    before = ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels
    try:
        torch_private.last_kernels_together()
        ours = ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels
        return ours is not before and ours(types.SimpleNamespace(_topological_sort_nodes=list)) == []
    finally:
        ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(before)


def every_operation_is_seen() -> bool:
    seen: list[str] = []

    class Listener(torch_private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Listener():
        torch.ones(2).add_(1)
    return "add_" in seen


PIECES: dict[str, tuple[Callable[[], bool], str]] = {
    "scaled_mm": (products_of_float8_are_scaled, "native_fp8=true cannot multiply"),
    "largest_magnitudes": (magnitudes_keep_nan_and_inf, "the guard cannot tell whether weights are finite"),
    "copy_each": (tensors_are_copied, "amax histories of delayed scaling are not updated"),
    "largest_over_group": (a_rank_alone_has_the_largest_value, "ranks of one run scale by different amaxes"),
    "in_backward": (a_backward_pass_is_noticed, "activation checkpointing recomputes with other random numbers"),
    "traced_in_backward": (
        code_compiled_in_a_backward_pass_knows_it,
        "compiled code in a checkpoint recomputes with other random numbers",
    ),
    "backward_pass_number": (
        a_backward_pass_within_another_has_its_own_number,
        "nested checkpoints recompute with other random numbers",
    ),
    "keep_until_backward_ends": (
        an_object_lives_until_the_backward_pass_ends,
        "nested checkpoints recompute with other random numbers",
    ),
    "in_transform": (a_transform_is_noticed, "torch.func transforms of rounded layers give wrong numbers"),
    "without_derivative": (an_output_refuses_its_derivative, "second derivatives of rounded layers are wrong"),
    "next_node_number": (nodes_are_numbered_in_their_order, "coverage cannot attribute products of the backward pass"),
    "running_node_number": (nodes_are_numbered_in_their_order, "coverage counts backward products for no module"),
    "writes_an_argument": (operations_that_write_are_told_apart, "measuring coverage may change the model"),
    "tensors_in": (nested_tensors_are_found, "measuring coverage may change the model"),
    "storage_key": (views_share_a_key, "measuring coverage may change the model"),
    "version_of": (changes_in_place_are_counted, "changes of weights from outside are not noticed"),
    "buffers_of": (buffers_can_be_put_back, "measuring coverage may change the model's buffers"),
    "without_onednn": (onednn_is_off_and_on_again, "coverage does not see the products of recurrent layers"),
    "compiler_failure": (a_compiler_that_fails_is_noticed, "compile=auto stops the run where the compiler fails"),
    "compiler_settings": (the_settings_are_there, "a sweep of more than 8 graphs trains eagerly, or compiles anew"),
    "last_kernels_together": (kernels_can_be_combined, "nothing that rounds can be compiled for a GPU"),
    "TorchDispatchMode": (every_operation_is_seen, "coverage sees no product"),
}


@pytest.mark.parametrize("piece", PIECES)
def test_torch_still_has_what_is_taken_from_inside_it(piece: str) -> None:
    does_its_work, consequence = PIECES[piece]
    try:
        kept = does_its_work()
    except (ImportError, AttributeError, TypeError, NotImplementedError) as error:
        pytest.fail(f"this torch has moved what `torch_private.{piece}` takes: {error}; without it {consequence}")
    assert kept, f"`torch_private.{piece}` no longer does what it is taken for; {consequence}"


def test_every_piece_is_asked_for_and_says_what_it_stands_in_for() -> None:
    functions = {name: one for name, one in vars(torch_private).items() if inspect.isfunction(one)}
    own = {name for name, one in functions.items() if one.__module__ == torch_private.__name__}
    there = {name for name in own if not name.startswith("_")}
    assert set(PIECES) - {"TorchDispatchMode"} == there
    assert [name for name in there if not functions[name].__doc__] == []


def test_inductor_still_has_the_options_that_rounding_is_compiled_with() -> None:
    gone = sorted(set(inductor_options(torch.device("cuda"))) - set(torch._inductor.list_options()))
    assert gone == [], f"Inductor no longer has {gone}: nothing that rounds can be compiled"


def test_questions_to_torch_add_nothing_to_a_graph() -> None:
    graphs = CompileCounterWithBackend("eager")

    def both(x):
        return torch_private.scaled_mm(x, x.t(), torch.ones(()), torch.ones(())), torch.stack(
            torch_private.largest_magnitudes([x.float()])
        )

    torch._dynamo.reset()
    torch.compile(both, backend=graphs, fullgraph=True)(torch.ones(16, 16).to(torch.float8_e4m3fn))
    calls = [node.name for node in graphs.graphs[0].graph.nodes if node.op.startswith("call_")]
    assert graphs.frame_count == 1
    assert [name for name in calls if "scaled_mm" in name or "foreach_norm" in name] == ["_scaled_mm", "_foreach_norm"]


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name that the source uses and does not define itself; argparse's types are let be.

    Private: a leading underscore, but not two.
    """
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)} | LENT_BY_OTHERS
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            paths = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr not in own:
            paths = [node.attr]
        else:
            continue
        for path in paths:
            if any(part.startswith("_") and not part.startswith("__") for part in path.split(".")):
                yield node.lineno, ast.unparse(node)


def test_no_other_file_takes_anything_from_inside_torch() -> None:
    found = []
    for file in sorted((ROOT / "altgrad").rglob("*.py")):
        source = file.read_text()
        if file != THE_FILE and "torch" in source:
            found += [f"{file.relative_to(ROOT)}:{line}: {name}" for line, name in private_names(source)]
    assert found == [], "private names of torch belong into altgrad/torch_private.py, as a function that says why"


@pytest.mark.parametrize(
    "line",
    [
        "torch._foreach_add_(a, b)",
        "torch.autograd._get_sequence_nr()",
        "from torch.utils._pytree import tree_leaves",
        "from torch.nn.modules.utils import _pair",
        "import torch._dynamo.config",
        "x = torch.backends\ny = x._flags",
        "parameter.untyped_storage()._cdata",
        "module._buffers['mask'] = 1",
    ],
)
def test_a_private_name_is_found_however_it_is_reached(line: str) -> None:
    assert len(list(private_names(line))) == 1

"""Whether torch still tells what is asked of a running backward pass; see `test_torch_private`."""

from __future__ import annotations

import contextlib
import weakref

import torch

from altgrad import torch_private


def code_compiled_in_a_backward_pass_knows_it() -> bool:
    @torch.compile(backend="eager")
    def traced(x):
        return x + torch_private.traced_in_backward()

    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: traced(torch.zeros(1)))
    x.sum().backward()
    gradient = x.grad
    torch._dynamo.reset()
    outside = traced(torch.zeros(1))
    torch._dynamo.reset()
    return gradient is not None and (gradient.item(), outside.item()) == (1, 0)


def a_backward_pass_within_another_has_its_own_number() -> bool:
    seen: list[int] = []
    x, inner = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)

    def within(gradient):
        seen.append(torch_private.backward_pass_number())
        inner.register_hook(lambda gradient: seen.append(torch_private.backward_pass_number()))
        with torch.enable_grad():
            inner.sum().backward()
        seen.append(torch_private.backward_pass_number())

    x.register_hook(within)
    x.sum().backward()
    outside = torch_private.backward_pass_number()
    return seen[0] == seen[2] != seen[1] and -1 not in seen and outside == -1


def an_object_lives_until_the_backward_pass_ends() -> bool:
    class Held:
        pass

    def lived(fails: bool) -> list[bool]:
        found: list[bool] = []
        refs: list[weakref.ref[Held]] = []
        x = torch.ones(1, requires_grad=True)

        def first(gradient):
            held = Held()
            refs.append(weakref.ref(held))
            torch_private.keep_until_backward_ends(held)

        def second(gradient):
            found.append(refs[0]() is not None)
            if fails:
                raise KeyError("a hook")

        y = x * 2
        x.register_hook(second)
        y.register_hook(first)
        with contextlib.suppress(KeyError):
            y.sum().backward()
        return [*found, refs[0]() is not None]

    return lived(False) == lived(True) == [True, False]

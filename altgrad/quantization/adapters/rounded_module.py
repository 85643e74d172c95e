"""How a module becomes a rounded one and plain again: an adapter is put in front of its class, in place.

The module stays the same object with the same Parameters, buffers, hooks and state dict, also if it is the whole model,
if others hold it, or if its class was made for it (by `fully_shard` or a parametrisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from altgrad.quantization.gemms.rounded_gemm import RoundedGemm

    _Module = nn.Module  # an adapter stands in front of a subclass of it
else:
    _Module = object

_CLASSES: dict[tuple[Any, Any], Any] = {}  # made by `rounded_class`


class RoundedModule(_Module):
    """What a module gains while products of it are rounded: mixed into its class, in place, and taken out again.

    The module stays the same object with the same Parameters, buffers, hooks and state dict.
    """

    plain_class: type[nn.Module]  # of the module before
    only_linear = True  # whether all its products are x W^T with a matrix W
    owned: Mapping[str, RoundedGemm]  # products, where the module is not one itself
    added: frozenset[str]  # names of the attributes that rounding has added

    @classmethod
    def weights_of(cls, module: nn.Module) -> list[str]:
        """Names of the weights within a plain module of this kind; "" for one product, with `weight`."""
        raise NotImplementedError

    def made_gemms(self) -> dict[str, RoundedGemm]:
        """A `RoundedGemm`, to be set up by the caller, for each of `weights_of`."""
        raise NotImplementedError

    def gemms(self) -> Mapping[str, RoundedGemm]:
        """The rounded products, by the name of their weight within the module."""
        return self.owned

    @property
    def plain(self) -> bool:
        """Whether nothing is rounded, so that the class's own forward pass does the same (see `RoundedGemm`)."""
        return all(gemm.plain for gemm in self.gemms().values())

    def note_added(self, before: frozenset[str]) -> None:
        """`before`: names of the module's attributes while it was plain."""
        self.added = frozenset(vars(self)) - before

    def become_plain(self) -> None:
        """Give the module its class back, and drop all that rounding has added to it."""
        for name in (*self.added, "added"):
            self.__dict__.pop(name, None)
        self.__class__ = self.plain_class  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A class that was made for this kind of module has no importable name, so that a pickle names its parts."""
        if type(self).__dict__.get("made_here"):
            return _unpickled, (type(self).__bases__, self.plain_class), dict(vars(self))
        return super().__reduce_ex__(protocol)


def _unpickled(bases: tuple[type, ...], plain_class: type[nn.Module]) -> Any:
    cls = rounded_class(bases[0], plain_class)
    return cls.__new__(cls)


def rounded_class(mixin: Any, plain_class: Any) -> Any:
    """`plain_class` with the mixin, an adapter, in front: a subclass of both, the same for the same two."""
    if issubclass(mixin, nn.Module) and mixin.plain_class is plain_class:
        return mixin
    if (mixin, plain_class) not in _CLASSES:
        _CLASSES[mixin, plain_class] = _new_class(mixin, plain_class)
    return _CLASSES[mixin, plain_class]


def _new_class(mixin: Any, plain_class: Any) -> Any:
    return type(f"Rounded{plain_class.__name__}", (mixin, plain_class), {"plain_class": plain_class, "made_here": True})

"""The kind of a config field is part of its declaration, so that no other module keeps a list of field names.

Code that treats fields by their kind (it pairs runs, plans trials, or compiles graphs) asks the config class:
`TrainConfig.of_kind("numeric")`, `TrainConfig.where(lambda field: field.in_graph)`.  A class with a field that was
declared without a kind raises TypeError when it is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

Kind = Literal[
    "numeric",  # how numbers are rounded; experiments compare runs that differ in these
    "seed",  # repeats of one experiment differ in nothing else
    "model",  # the model that is trained
    "data",  # the data that it is trained on
    "workload",  # amount of training: batch size, number of steps and of validation batches
    "optimisation",  # optimizer settings, which a sweep varies to find the best training
    "rescue",  # interventions and their limits
    "measuring",  # which metrics are measured, and how often
    "judging",  # thresholds of the collapse rules
    "running",  # device, threads, compilation: results change by float32 rounding at most
    "planning",  # the sweeps that the config belongs to
]
_TIMELESS: tuple[Kind, ...] = ("seed", "optimisation", "judging", "planning")


@dataclass(frozen=True)
class FieldTraits:
    """Properties of a field besides its type, default and description.

    `in_graph`: another value needs another compiled graph.  `timed`: another value may change the time of a step.
    `moves_baseline`: another value may change the losses of a run in BF16 with FP32 master weights.
    `only_with`: (field, value) such as ("enable_emergency_shift", True): unless that field has that value, nothing
    reads this one.
    `by_task`: read by the task (its model, data and optimizer) and else by estimates of time and memory alone, so that
    a task may have no use for it.
    """

    kind: Kind
    in_graph: bool = False
    timed: bool = True
    moves_baseline: bool = True
    only_with: tuple[str, Any] | None = None
    by_task: bool = False


def field(
    default: Any,
    kind: Kind,
    description: str,
    *,
    in_graph: bool = False,
    timed: bool | None = None,
    moves_baseline: bool = True,
    only_with: tuple[str, Any] | None = None,
    by_task: bool = False,
    **limits: Any,
) -> Any:
    """Declare a config field; by default `timed` follows from the kind; `limits` as for pydantic's `Field`."""
    timed = kind not in _TIMELESS if timed is None else timed
    traits = FieldTraits(kind, in_graph, timed, moves_baseline, only_with, by_task)
    return Field(default, description=description, json_schema_extra={"traits": asdict(traits)}, **limits)


class Declared(BaseModel):
    """A model whose fields must all be declared with `field`; a class with another one raises TypeError."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, info in cls.model_fields.items():
            if not isinstance(info.json_schema_extra, dict) or "traits" not in info.json_schema_extra:
                kinds = ", ".join(get_args(Kind))
                raise TypeError(f"{cls.__name__}.{name}: declare it with `field`, which takes its kind: one of {kinds}")

    @classmethod
    def traits(cls) -> Mapping[str, FieldTraits]:
        """Field name -> traits, in the order of declaration."""
        return _traits(cls)

    @classmethod
    def where(cls, is_wanted: Callable[[FieldTraits], bool]) -> frozenset[str]:
        """Names of the fields for whose traits `is_wanted` is true."""
        return frozenset(name for name, traits in cls.traits().items() if is_wanted(traits))

    @classmethod
    def of_kind(cls, *kinds: Kind) -> frozenset[str]:
        """Names of the fields of one of these kinds."""
        return cls.where(lambda traits: traits.kind in kinds)

    def without_effect(self) -> frozenset[str]:
        """Names of the fields that have no effect in this config, because their `only_with` is not fulfilled."""
        return self.where(
            lambda field: field.only_with is not None and getattr(self, field.only_with[0]) != field.only_with[1]
        )


@cache
def _traits(cls: type[Declared]) -> Mapping[str, FieldTraits]:
    found = {}
    for name, info in cls.model_fields.items():
        assert isinstance(info.json_schema_extra, dict)
        found[name] = FieldTraits(**info.json_schema_extra["traits"])  # type: ignore[arg-type]
    return found

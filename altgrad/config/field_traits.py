"""What a config field is, said where the field is declared: nobody keeps a list of field names beside the config.

Whoever treats fields by their kind (pairing runs, planning trials, naming what a graph depends on) asks the config
class: `TrainConfig.of_kind("numeric")`, `TrainConfig.where(lambda field: field.in_graph)`.  A field whose declaration
does not say its kind is refused when its class is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

Kind = Literal[
    "numeric",  # how numbers are rounded: what is compared
    "seed",  # what repeats of one experiment differ in
    "model",  # what is trained
    "data",  # on what
    "workload",  # how much of it: size of a batch, number of steps, of validation batches
    "optimisation",  # how the optimizer moves: what is varied to find the best training
    "rescue",  # interventions and their limits
    "measuring",  # what is measured and how often
    "judging",  # the collapse rules
    "running",  # where and how it is computed, which changes no result beyond float32 rounding
    "planning",  # which sweeps it belongs to
]
_TIMELESS: tuple[Kind, ...] = ("seed", "optimisation", "judging", "planning")


@dataclass(frozen=True)
class FieldTraits:
    """What is to be known of a field beside its type, default and meaning.

    `in_graph`: other values make another compiled graph.  `timed`: other values may make a step take longer.
    `moves_baseline`: another value may change the numbers of a run in BF16 with FP32 masters.
    `only_with`: (field, value) without which nothing reads this field, such as the switch of an intervention.
    """

    kind: Kind
    in_graph: bool = False
    timed: bool = True
    moves_baseline: bool = True
    only_with: tuple[str, Any] | None = None


def field(
    default: Any,
    kind: Kind,
    description: str,
    *,
    in_graph: bool = False,
    timed: bool | None = None,
    moves_baseline: bool = True,
    only_with: tuple[str, Any] | None = None,
    **limits: Any,
) -> Any:
    """Declare a config field; `timed` goes by the kind unless said; `limits` as for pydantic's `Field`."""
    timed = kind not in _TIMELESS if timed is None else timed
    traits = FieldTraits(kind, in_graph, timed, moves_baseline, only_with)
    return Field(default, description=description, json_schema_extra={"traits": asdict(traits)}, **limits)


class Declared(BaseModel):
    """A model whose fields are all declared with `field`.  Raises TypeError for another, when its class is made."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, info in cls.model_fields.items():
            if not isinstance(info.json_schema_extra, dict) or "traits" not in info.json_schema_extra:
                kinds = ", ".join(get_args(Kind))
                raise TypeError(f"{cls.__name__}.{name}: declare it with `field`, which takes its kind: one of {kinds}")

    @classmethod
    def traits(cls) -> Mapping[str, FieldTraits]:
        """What each field is, by name, in the order of declaration."""
        return _traits(cls)

    @classmethod
    def where(cls, is_wanted: Callable[[FieldTraits], bool]) -> frozenset[str]:
        """Names of the fields whose traits are as wanted."""
        return frozenset(name for name, traits in cls.traits().items() if is_wanted(traits))

    @classmethod
    def of_kind(cls, *kinds: Kind) -> frozenset[str]:
        """Names of the fields of some kinds."""
        return cls.where(lambda traits: traits.kind in kinds)

    def without_effect(self) -> frozenset[str]:
        """Names of the fields that nothing reads while the other fields are what they are."""
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

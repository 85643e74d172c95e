"""The share of a model's matrix products that is rounded, and the products that are not, as a record and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from altgrad.config.train_config import LITTLE_COVERAGE
from altgrad.text.number_text import shares_text

MOST_LISTED = 20
_WORTH_SAYING = 0.005  # share of the products that a field would round more
TWO_ACTIVATIONS = "product of two activations"
CHOSEN = ("filter_fn", TWO_ACTIVATIONS)  # reasons that are a choice: of the user, or of the recipe


@dataclass(frozen=True)
class LeftOut:
    """Products that are not rounded: their module, its class (`type`), their FLOPs per step, and the reason."""

    module: str
    type: str
    flops: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """FLOPs of one step's matrix products, forward and backward, in total and in rounded layers.

    `modules`: the products that are not rounded, largest first.  `note`: which part could not be measured, else "".
    `formats`: the rounded FLOPs by the formats of both operands, largest first, such as {"E4M3": 8, "E5M2 x E4M3": 4}
    in the recipe's first phase; a layer that a recipe leaves in BF16 stands under "BF16".
    `attention_flops`: of what is not rounded, that which `attention_gemms: true` would round.
    """

    total_flops: int
    rounded_flops: int
    modules: tuple[LeftOut, ...]
    note: str = ""
    formats: Mapping[str, int] = field(default_factory=dict)
    attention_flops: int = 0

    @property
    def share(self) -> float | None:
        """Rounded share of the FLOPs; None if no product was seen."""
        return self.rounded_flops / self.total_flops if self.total_flops else None

    @property
    def uncovered(self) -> tuple[LeftOut, ...]:
        """The products that are left out without having been chosen: nothing here can round them."""
        return tuple(one for one in self.modules if one.reason not in CHOSEN)

    def record(self) -> dict[str, Any]:
        """The form in which `run.json` stores it, with the largest of the products that are left out."""
        return {"share": self.share, **asdict(self), "modules": [asdict(one) for one in self.modules[:MOST_LISTED]]}

    def _repr_html_(self) -> str:
        """For a notebook: the sentence, and the products that are left out as a table."""
        rows = "".join(
            f"<tr><td>{escape(one.module)}</td><td>{escape(one.type)}</td><td>{one.flops / self.total_flops:.1%}</td>"
            f"<td>{escape(one.reason)}</td></tr>"
            for one in self.modules[:MOST_LISTED]
        )
        head = "<tr><th>left out</th><th>class</th><th>GEMM FLOPs</th><th>reason</th></tr>"
        said = self.sentence().partition(";")[0] if self.share is not None else self.sentence()
        return f"<p>{escape(said)}</p>" + (f"<table>{head}{rows}</table>" if rows else "")

    def sentence(self, warned: bool = True) -> str:
        """`91.4 % of the GEMM FLOPs are rounded; left out: h.0.attn (product of two activations) 2.1 %, ...`."""
        if self.share is None:
            return f"which share of the GEMM FLOPs is rounded is not known: {self.note or 'no product was seen'}"
        largest = ", ".join(
            f"{one.module} ({one.reason}) {one.flops / self.total_flops:.1%}" for one in self.modules[:3]
        )
        rest = ", ..." if len(self.modules) > 3 else ""
        left_out = f"; left out: {largest}{rest}" if largest else ""
        warning = "Warning: only " if warned and self.share < LITTLE_COVERAGE else ""
        note = f" ({self.note})" if self.note else ""
        more = ""
        if self.attention_flops >= _WORTH_SAYING * self.total_flops:
            share = (self.rounded_flops + self.attention_flops) / self.total_flops
            more = f"; with attention_gemms: true {share:.1%} would be"
        return f"{warning}{self.share:.1%} of the GEMM FLOPs are rounded{self._by_format()}{left_out}{more}{note}"

    def _by_format(self) -> str:
        """` (E4M3 66.7%, BF16 33.3%)`, of all FLOPs, if the formats differ, or one is FP32, which changes no value."""
        shares = {name: flops / self.total_flops for name, flops in self.formats.items()}
        return f" ({shares_text(shares)})" if len(shares) > 1 or "FP32" in shares else ""

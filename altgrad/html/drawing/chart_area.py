"""The plotting area of a chart: positions of steps and values, and axes.  Lengths are SVG units, about a pixel each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from altgrad.html.markup import Html, element, join
from altgrad.text.number_text import number

_CHARACTER = 6.6  # width of a digit at the size of the tick labels


@dataclass(frozen=True)
class Frame:
    """A plotting area of `width` x `height` at (`left`, `top`); `steps` and `values` are the limits of its axes."""

    left: float
    top: float
    width: float
    height: float
    steps: tuple[float, float]
    values: tuple[float, float]

    @property
    def bottom(self) -> float:
        """The y position of the lower edge."""
        return self.top + self.height

    @property
    def right(self) -> float:
        """The x position of the right edge."""
        return self.left + self.width

    def x(self, step: float) -> float:
        """The x position of a step; a step outside the limits is at the edge."""
        first, last = self.steps
        return self.left + self.width * min(max((step - first) / (last - first), 0.0), 1.0)

    def y(self, value: float) -> float:
        """The y position of a value; a value outside the limits is at the edge."""
        low, high = self.values
        return self.bottom - self.height * min(max((value - low) / (high - low), 0.0), 1.0)


def axes(frame: Frame, y_title: str) -> Html:
    """Grid lines, tick labels and titles; the title of the y-axis is above the axis, so that it is not rotated."""
    parts = []
    for value in ticks(*frame.values, most_values(frame.height)):
        y = frame.y(value)
        parts.append(element("path", d=f"M{frame.left:.6g} {y:.1f}h{frame.width:.6g}", class_="grid"))
        parts.append(element("text", number(value), x=frame.left - 6, y=y + 4, text_anchor="end"))
    widest = _CHARACTER * len(f"{int(frame.steps[1]):d}")
    for step in ticks(*frame.steps, max(int(frame.width // (widest + 34)), 2), whole=True):
        x = frame.x(step)
        parts.append(element("path", d=f"M{x:.1f} {frame.bottom:.6g}v4", class_="axis"))
        parts.append(element("text", f"{int(step):d}", x=x, y=frame.bottom + 17, text_anchor="middle"))
    parts.append(element("path", d=f"M{frame.left:.6g} {frame.bottom:.6g}h{frame.width:.6g}", class_="axis"))
    parts.append(element("text", "Step", x=frame.right, y=frame.bottom + 33, text_anchor="end"))
    parts.append(element("text", y_title, x=4, y=frame.top - 10))
    return join(parts)


def most_values(height: float) -> int:
    """The number of ticks that fit on a y-axis of this height."""
    return max(int(height // 42), 2)


def ticks(low: float, high: float, n: int, *, whole: bool = False) -> list[float]:
    """About `n` round values from `low` to `high`, each 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        apart = max(apart, 1.0)
    places = range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)
    return [round(place * apart, 12) for place in places]


def margin(values: Iterable[float]) -> float:
    """The width to the left of a plotting area that tick labels of these values need."""
    return 14 + _CHARACTER * max((len(number(value)) for value in values), default=1)

"""The palette by colour science written here: CIEDE2000, contrast, and what dichromats see.

CIEDE2000 is that of Sharma, Wu and Dalal (2005) and is held against their published pairs.  Deuteranopia and protanopia
are the matrices of Machado, Oliveira and Fernandes (2009) for full severity, in linear RGB.
"""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations
from math import atan2, cos, degrees, exp, hypot, radians, sin, sqrt
from pathlib import Path

import numpy as np
import pytest

from altgrad.formats import FORMATS
from altgrad.show.palette import ALARM, ALARM_ON_DARK, PALETTE, curve_dash, curve_marker, format_colour

Lab = tuple[float, float, float]
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
STREAMLIT_DARK = "#0e1117"


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour: str, vision: str) -> Lab:
    xyz = _XYZ @ np.clip(VISION[vision] @ linear(colour), 0, 1) / _XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).tolist()
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(one: Lab, other: Lab) -> float:
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (hypot(a1, b1) + hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - sqrt(chroma**7 / (chroma**7 + 25**7)))
    c1, c2 = hypot(a1 * stretch, b1), hypot(a2 * stretch, b2)
    h1, h2 = degrees(atan2(b1, a1 * stretch)) % 360, degrees(atan2(b2, a2 * stretch)) % 360
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    hue = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    light, c = (l1 + l2) / 2, (c1 + c2) / 2
    t = (1 - 0.17 * cos(radians(hue - 30)) + 0.24 * cos(radians(2 * hue)) + 0.32 * cos(radians(3 * hue + 6))
         - 0.20 * cos(radians(4 * hue - 63)))  # fmt: skip
    by_light = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / sqrt(20 + (light - 50) ** 2))
    by_chroma = (c2 - c1) / (1 + 0.045 * c)
    by_hue = 2 * sqrt(c1 * c2) * sin(radians(turn / 2)) / (1 + 0.015 * c * t)
    rotation = -2 * sqrt(c**7 / (c**7 + 25**7)) * sin(radians(60 * exp(-(((hue - 275) / 25) ** 2))))
    return sqrt(by_light**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue)


def contrast(one: str, other: str) -> float:
    """WCAG 2: from 1 to 21."""
    low, high = sorted(float(_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("one", "other", "published"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_oracle_gives_the_published_differences(one: Lab, other: Lab, published: float) -> None:
    assert ciede2000(one, other) == pytest.approx(published, abs=1e-4)
    assert ciede2000(other, one) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize("vision", VISION)
def test_any_two_formats_and_the_alarms_are_told_apart(vision: str) -> None:
    seen = {name: lab(colour, vision) for name, colour in PALETTE.items()}
    seen |= {alarm: lab(alarm, vision) for alarm in (ALARM, ALARM_ON_DARK)}
    near = {pair: d for pair in combinations(seen, 2) if (d := ciede2000(seen[pair[0]], seen[pair[1]])) < 10}
    assert near == {}


def test_every_colour_stands_out_on_each_page() -> None:
    css = resources.files("altgrad.html").joinpath("style.css").read_text()
    light, dark, paper = re.findall(r"--page: (#\w{6})", css)  # printed, it is light whatever the screen is
    assert re.findall(r"--alarm: (#\w{6})", css) == [ALARM, ALARM_ON_DARK, ALARM] and paper == light
    for colour in {format_colour(name) for name in FORMATS} | {ALARM}:
        for page in (light, dark, "#ffffff", STREAMLIT_DARK):
            assert contrast(colour, page) >= 3, (colour, page)
    for page, alarm in ((light, ALARM), (dark, ALARM_ON_DARK)):
        assert contrast(alarm, page) >= 4.5, "it is a colour of text"


def test_no_two_formats_are_drawn_alike() -> None:
    names = dict.fromkeys(fmt.name for fmt in FORMATS.values())
    drawn = [(format_colour(name), curve_dash(name), curve_marker(name, "", [])) for name in names]
    assert len(set(drawn)) == len(drawn)
    assert all(curve_dash(name) == "solid" and curve_marker(name, "", []) is None for name in PALETTE)
    assert format_colour("E9M9_from_the_future") and curve_dash("E9M9_from_the_future") != "solid"


def test_interventions_differ_without_colour() -> None:
    names = ["none", "clip", "shift", "clip+shift", "stochastic", "master", "scaling"]
    assert len({curve_dash("E4M3", name) for name in names}) == len(names)


def test_no_other_file_has_a_colour_of_an_alarm_or_a_format_written_out() -> None:
    root = Path(__file__).parents[3]
    files = [file for folder in ("altgrad", "dashboard") for file in (root / folder).rglob("*.py")]
    written = {file.name: found for file in files if (found := set(re.findall(r"#[0-9a-f]{6}\b", file.read_text())))}
    owned = {*PALETTE.values(), ALARM, ALARM_ON_DARK}
    assert [name for name, found in written.items() if found & owned] == ["palette.py"]

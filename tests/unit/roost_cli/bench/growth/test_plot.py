"""Tests the plots, as documents that a program reads."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from roost_cli.bench.growth.fit import Fit
from roost_cli.bench.growth.plot import BOTTOM, HEIGHT, Curve, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*curves: Curve) -> ET.Element:
    return ET.fromstring(draw("Title & more", "followers", "CPU ms", curves))  # noqa: S314 (our own document)


def test_draw_places_points_on_logarithmic_axes() -> None:
    root = drawn(Curve("post <1>", [10, 100, 1_000], [0.1, 1, 10], Fit(1.0, 0.01)))
    circles = list(root.iter(f"{SVG}circle"))[:3]
    xs, ys = ([float(one.attrib[name]) for one in circles] for name in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert xs[0] < xs[1]
    assert ys[0] > ys[1]
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"Title & more", "followers", "CPU ms", "post <1>", "exponent 1.00", "1k", "0.1"} <= set(texts)


def test_draw_line_follows_fit_over_sizes_of_curve() -> None:
    root = drawn(Curve("post", [10, 1_000], [1, 1], Fit(0.0, 1.0)), Curve("read", [10, 100], [10, 10], Fit(0.0, 10.0)))
    lines = [one for one in root.iter(f"{SVG}line") if one.attrib["stroke"] != "#dddddd"]
    first, second = lines
    assert first.attrib["y1"] == first.attrib["y2"]
    assert float(second.attrib["y1"]) < float(first.attrib["y1"])
    assert float(second.attrib["x2"]) < float(first.attrib["x2"])


def test_draw_single_size_has_axes() -> None:
    root = drawn(Curve("post", [10], [1], Fit(float("nan"), 1.0)))
    assert "nan" not in "".join(" ".join(one.attrib.values()) for one in root.iter())


def test_draw_line_below_points_stays_inside_axes() -> None:
    root = drawn(Curve("post", [10, 1_000], [12, 500], Fit(1.0, 0.5)))
    bottom = HEIGHT - BOTTOM
    assert all(float(one.attrib[name]) <= bottom for one in root.iter(f"{SVG}line") for name in ("y1", "y2"))

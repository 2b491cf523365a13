"""A line plot as SVG, so that the benchmark needs no plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 400, 60, 30, 210, 50
#: of Okabe and Ito (2008): told apart by people who see fewer colours, and on white and on black
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what it shows
        logarithmic: whether equal steps are equal factors
        bounds: its ends; None: those of the data
    """

    label: str
    logarithmic: bool = False
    bounds: tuple[float, float] | None = None

    def placed(self, values: Sequence[float]) -> tuple[float, float]:
        """The ends for these values, apart from each other."""
        low, high = self.bounds or (min(values), max(values))
        return (low, high) if high > low else (low - 0.5, high + 0.5) if not self.logarithmic else (low / 2, high * 2)

    def share(self, value: float, ends: tuple[float, float]) -> float:
        """Where a value stands, 0 to 1."""
        value, low, high = (math.log(v) if self.logarithmic else v for v in (value, *ends))
        return (value - low) / (high - low)


def line_plot(title: str, x: Axis, y: Axis, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points, with their names at the right.

    Args:
        lines: name -> `(x, y)`; one without points is left out

    Raises:
        ValueError: there is no point at all
    """
    lines = {name: sorted(points) for name, points in lines.items() if points}
    points = [point for own in lines.values() for point in own]
    if not points:
        raise ValueError(f"The plot {title!r} has no points.")
    ends_x, ends_y = x.placed([p[0] for p in points]), y.placed([p[1] for p in points])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = x.share(point[0], ends_x), y.share(point[1], ends_y)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 18, title, bold=True), *_axes(x, y, ends_y, sorted({p[0] for p in points}), place)]
    for k, (name, own) in enumerate(lines.items()):
        colour, places = _COLOURS[k % len(_COLOURS)], [place(point) for point in own]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dashes = f' stroke-dasharray="{3 + k // len(_COLOURS) * 3}"' if k >= len(_COLOURS) else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places]
        down = _TOP + 10 + 17 * k
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 12}" y="{down - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(_WIDTH - _RIGHT + 28, down + 1, name))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>"])


def _axes(x: Axis, y: Axis, ends_y: tuple[float, float], at: Sequence[float], place) -> list[str]:
    """Ticks at every x that was measured, and at five heights."""
    parts = []
    low, high = ends_y
    for k in range(5):
        value = low * (high / low) ** (k / 4) if y.logarithmic else low + (high - low) * k / 4
        _, height = place((at[0], value))
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#dddddd"/>'
        )
        parts.append(_text(_LEFT - 6, height + 4, f"{value:.3g}", anchor="end"))
    for value in at:
        across, _ = place((value, low))
        parts.append(_text(across, _HEIGHT - _BOTTOM + 18, f"{value:g}", anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 10, x.label, anchor="middle"))
    parts.append(f'<g transform="rotate(-90 14 {_HEIGHT / 2})">{_text(14, _HEIGHT / 2, y.label, anchor="middle")}</g>')
    return parts


def _text(across: float, down: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}"{weight}>{html.escape(text)}</text>'

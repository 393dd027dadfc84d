"""Quality per dollar as SVG, and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from agent.evaluation.pareto import Picture, Point

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 56, 60
_INK, _FAINT, _LINE, _MARK, _KNEE = "#1f2933", "#52606d", "#e4e7eb", "#0b6e99", "#c2410c"
_ROWS, _COLUMNS = 14, 60
_STEPS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
PER = 1000  # requests that the cost axis is of
_LABEL_GAP = 15  # between two lines of text


class _Axes:
    """From cost and quality to places on a picture."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.most = _round_up(max(point.cost for point in points) * PER) or 1.0
        low = min(point.quality for point in points)
        self.low = max(0.0, math.floor((low - 0.02) * 20) / 20)

    def x(self, point: Point) -> float:
        return _LEFT + point.cost * PER / self.most * (_WIDTH - _LEFT - _RIGHT)

    def y(self, quality: float) -> float:
        return _TOP + (1 - (quality - self.low) / (1 - self.low or 1.0)) * (_HEIGHT - _TOP - _BOTTOM)


def svg(found: Picture, title: str) -> str:
    """Return the picture: options as dots, thresholds as rings, the front as a line, the knee marked."""
    axes = _Axes(found.points)
    line = " ".join(f"{axes.x(point):.1f},{axes.y(point.quality):.1f}" for point in found.front)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 20, title, anchor="start", size=14),
        _text(_LEFT, 38, f"knee: {found.knee.name or 'none'}; {found.knee.why}", anchor="start", colour=_FAINT),
        *_grid(axes),
        f'<polyline fill="none" stroke="{_MARK}" stroke-width="1.5" points="{line}"/>',
        *(_dot(axes, point, is_knee=point.name == found.knee.name) for point in _small_first(found)),
        *_labels(axes, found),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, f"dollars per {PER:,} requests"),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _small_first(found: Picture) -> list[Point]:
    """Return the points so that what has a name is drawn over what has none."""
    return sorted(found.points, key=lambda point: (not point.is_sweep, point.name == found.knee.name))


def _grid(axes: _Axes) -> list[str]:
    parts = []
    for step in range(6):
        at = axes.most * step / 5
        x = _LEFT + step / 5 * (_WIDTH - _LEFT - _RIGHT)
        parts.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"${at:.4g}"))
        quality = axes.low + (1 - axes.low) * step / 5
        y = axes.y(quality)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 8, y + 4, f"{quality:.0%}", anchor="end"))
    return parts


def _labels(axes: _Axes, found: Picture) -> list[str]:
    """Name each option that is no mere threshold, and the knee; names that would lie on each other move apart."""
    taken: list[tuple[float, float, float]] = []
    parts = []
    named = [point for point in found.points if not point.is_sweep or point.name == found.knee.name]
    for point in sorted(named, key=lambda one: (one.name != found.knee.name, -one.quality)):
        x, y = axes.x(point), axes.y(point.quality)
        width = 6.6 * len(point.name)
        is_right = x + 10 + width < _WIDTH - _RIGHT
        left = x + 10 if is_right else x - 10 - width
        at = y - 8 if y - 8 - _LABEL_GAP > _TOP else y + 20  # not into the title
        while any(abs(at - other) < _LABEL_GAP and left < end and begin < left + width for begin, end, other in taken):
            at += _LABEL_GAP
        taken.append((left, left + width, at))
        colour = _KNEE if point.name == found.knee.name else _INK
        anchor = "start" if is_right else "end"
        parts.append(_text(x + 10 if is_right else x - 10, at, point.name, anchor=anchor, colour=colour, halo=True))
    return parts


def _dot(axes: _Axes, point: Point, *, is_knee: bool) -> str:
    colour = _KNEE if is_knee else _MARK
    fill = "white" if point.is_sweep and not is_knee else colour
    radius = 6 if is_knee else 3 if point.is_sweep else 4.5
    name = escape(f"{point.name}: ${point.cost * PER:.4g} per {PER:,}, {point.quality:.1%}")
    return (
        f'<circle cx="{axes.x(point):.1f}" cy="{axes.y(point.quality):.1f}" r="{radius}" fill="{fill}" '
        f'stroke="{colour}"><title>{name}</title></circle>'
    )


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{_LINE}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "middle",
    colour: str = _INK,
    size: int | None = None,
    halo: bool = False,
) -> str:
    sized = f' font-size="{size}"' if size else ""
    # Readable over rings and lines.
    around = ' stroke="white" stroke-width="4" stroke-linejoin="round" paint-order="stroke"' if halo else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{sized}{around}>{escape(text)}</text>'


def _round_up(value: float) -> float:
    """Return the next number of _STEPS times a power of ten; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * 0.999999)


def in_terminal(found: Picture) -> list[str]:
    """Return the picture as lines of text: options by letter, thresholds as dots, the knee as *."""
    axes = _Axes(found.points)
    grid = [[" "] * _COLUMNS for _ in range(_ROWS)]
    options = [point for point in found.points if not point.is_sweep]
    letters = {point.name: chr(ord("A") + number) for number, point in enumerate(options[:26])}
    for point in sorted(found.points, key=lambda one: (not one.is_sweep, one.name == found.knee.name)):
        row = min(_ROWS - 1, max(0, round((1 - point.quality) / (1 - axes.low or 1.0) * (_ROWS - 1))))
        column = min(_COLUMNS - 1, round(point.cost * PER / axes.most * (_COLUMNS - 1)))
        grid[row][column] = "*" if point.name == found.knee.name else letters.get(point.name, ".")
    lines = [f"quality by dollars per {PER:,} requests (. a threshold, * the knee)"]
    for number, cells in enumerate(grid):
        quality = 1 - (1 - axes.low) * number / (_ROWS - 1)
        label = f"{quality:6.1%}" if number % 3 == 0 or number == _ROWS - 1 else " " * 6
        lines.append(f"  {label} |{''.join(cells).rstrip()}")
    lines.append(f"         +{'-' * _COLUMNS}")
    lines.append(f"         $0{f'${axes.most:.4g}':>{_COLUMNS - 1}}")
    lines += [
        f"  {letter if name != found.knee.name else '*'} {name}: ${point.cost * PER:.4g}, {point.quality:.1%}"
        for (name, letter), point in zip(letters.items(), options, strict=False)
    ]
    lines.append(f"knee: {found.knee.name or 'none'}; {found.knee.why}")
    return lines

"""The pictures of a calibration: a reliability diagram and a risk-coverage curve, as SVG and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from agent.confidence.calibration import Calibration, Report

_SIDE, _MARGIN = 360, 48  # of the plotted square, and around it
_ROWS, _COLUMNS = 12, 48
_INK, _PALE, _MARK = "#1f2933", "#9aa5b1", "#0b6e99"


def reliability_svg(calibration: Calibration) -> str:
    """Return the reliability diagram: what was said against what was so, with exact 95 % intervals."""
    report = calibration.report
    marks = [_line(0, 0, 1, 1, _PALE, dashed=True)]
    for one in report.reliability:
        marks.append(_line(one.probability, one.low, one.probability, one.high, _MARK))
        marks.append(_dot(one.probability, one.accuracy))
    if calibration.threshold is not None:
        marks.append(_line(calibration.threshold, 0, calibration.threshold, 1, _INK, dashed=True))
    error = f"ECE {report.expected_error:.3f}, {report.expected_error_floor:.3f} if it were right"
    title = f"{calibration.task}: reliability, {report.examples} examples, {error}"
    return _square(title, "probability that was said", "share that was right", marks, 1.0)


def risk_coverage_svg(calibration: Calibration) -> str:
    """Return the share that is wrong among what is served, against how much is served."""
    report = calibration.report
    top = _top(report)
    points = " ".join(f"{_x(one.coverage):.1f},{_y(min(one.risk / top, 1.0)):.1f}" for one in report.curve)
    marks = [f'<polyline fill="none" stroke="{_MARK}" stroke-width="2" points="{points}"/>']
    if calibration.target == "accuracy":
        limit = min(1.0, (1 - calibration.value) / top)
        marks.append(_line(0, limit, 1, limit, _PALE, dashed=True))
    if calibration.threshold is not None:
        marks.append(_line(report.coverage, 0, report.coverage, 1, _INK, dashed=True))
    title = f"{calibration.task}: risk and coverage, {report.examples} examples, {report.coverage:.1%} served"
    return _square(title, "share served", "share wrong among the served", marks, top)


def _top(report: Report) -> float:
    return max(0.05, *(one.risk for one in report.curve)) if report.curve else 1.0


def _square(title: str, across: str, up: str, marks: Sequence[str], top: float) -> str:
    whole = _SIDE + 2 * _MARGIN
    ticks = []
    for part in range(6):
        at = part / 5
        ticks.append(_text(_x(at), _MARGIN + _SIDE + 18, f"{at:.1f}"))
        ticks.append(_text(_MARGIN - 8, _y(at) + 4, f"{at * top:.2f}", anchor="end"))
    frame = f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="{_PALE}"/>'
    turned = f"rotate(-90 14 {whole / 2:.0f})"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {whole}" font-family="sans-serif" font-size="11">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{whole}" height="{whole}" fill="white"/>',
            _text(whole / 2, 24, title),
            frame,
            *ticks,
            *marks,
            _text(whole / 2, whole - 8, across),
            f'<text x="14" y="{whole / 2:.0f}" text-anchor="middle" fill="{_INK}" transform="{turned}">{escape(up)}</text>',
            "</svg>",
            "",
        ]
    )


def _x(at: float) -> float:
    return _MARGIN + at * _SIDE


def _y(at: float) -> float:
    return _MARGIN + (1 - at) * _SIDE


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    ends = f'x1="{_x(x0):.1f}" y1="{_y(y0):.1f}" x2="{_x(x1):.1f}" y2="{_y(y1):.1f}"'
    return f'<line {ends} stroke="{colour}"{dashes}/>'


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="4" fill="{_MARK}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'


def in_terminal(calibration: Calibration) -> list[str]:
    """Return both pictures as lines of text."""
    report = calibration.report
    lines = ["reliability: what was said, what was right (95 % interval)"]
    for one in report.reliability:
        bar = "#" * round(one.accuracy * 30)
        lines.append(
            f"  {one.probability:5.2f}  {one.accuracy:5.2f} ({one.low:.2f} to {one.high:.2f})  {bar:<30}  n={one.answers}"
        )
    top = _top(report)
    lines.append(f"risk (up to {top:.0%}) by share served:")
    grid = [[" "] * _COLUMNS for _ in range(_ROWS)]
    if calibration.target == "accuracy":
        row = _row((1 - calibration.value) / top)
        grid[row] = ["-"] * _COLUMNS
    for point in report.curve:
        grid[_row(point.risk / top)][min(_COLUMNS - 1, int(point.coverage * _COLUMNS))] = "*"
    if calibration.threshold is not None and report.served:
        column = min(_COLUMNS - 1, int(report.coverage * _COLUMNS))
        for cells in grid:
            cells[column] = "|" if cells[column] in " -" else cells[column]
    for number, cells in enumerate(grid):
        label = f"{top * (1 - number / (_ROWS - 1)):6.1%}" if number % 3 == 2 or number == 0 else " " * 6
        lines.append(f"  {label} {''.join(cells)}")
    lines.append(f"         0 %{'served':^{_COLUMNS - 8}}100 %")
    return lines


def _row(height: float) -> int:
    return min(_ROWS - 1, max(0, round((1 - height) * (_ROWS - 1))))

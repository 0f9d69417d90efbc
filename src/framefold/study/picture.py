"""Intervals as a plain SVG: no library draws it, so its bytes depend on nothing but the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np

ROW, HEADING, MARGIN = 30, 34, 14  # pixels
NAMES, WIDTH = 190, 560  # of the column of names and of the plot
COLOURS = ("#999999", "#1f5fa8")
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
TICKS = 9  # at most
Ends = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Interval:
    group: str
    name: str
    ends: Sequence[Ends | None]  # one for each series


@dataclass(frozen=True)
class Scale:
    """Score differences -> pixels."""

    low: float
    high: float

    def x(self, value: float) -> float:
        return NAMES + WIDTH * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        step = next((step for step in STEPS if (self.high - self.low) / step <= TICKS), STEPS[-1])
        return [step * i for i in range(int(np.ceil(self.low / step)), int(np.floor(self.high / step)) + 1)]


def draw(intervals: Sequence[Interval], series: Sequence[str]) -> str:
    """Horizontal intervals under the headings of their groups, one line in each row for every series."""
    scale = scale_of(intervals)
    y, lines = MARGIN + 2 * ROW, list(legend(series))
    for group, rows in groupby(intervals, key=lambda interval: interval.group):
        y += HEADING
        lines.append(text(MARGIN, y - 8, group, "font-weight='bold'"))
        for row in rows:
            lines += draw_row(row, y, scale)
            y += ROW
    height = y + 2 * ROW
    return "\n".join([*head(height), *axis(scale, MARGIN + 2 * ROW, y), *lines, "</svg>", ""])


def scale_of(intervals: Sequence[Interval]) -> Scale:
    values = [value for interval in intervals for ends in interval.ends if ends for value in ends] + [0.0]
    room = 0.05 * (max(values) - min(values)) or 0.01
    return Scale(min(values) - room, max(values) + room)


def head(height: float) -> list[str]:
    width = NAMES + WIDTH + 2 * MARGIN
    size = f"width='{width}' height='{height:.0f}' viewBox='0 0 {width} {height:.0f}'"
    font = "font-family='sans-serif' font-size='13'"
    paper = "<rect width='100%' height='100%' fill='white'/>"
    return [f"<svg xmlns='http://www.w3.org/2000/svg' {size} {font}>", paper]


def legend(series: Sequence[str]) -> list[str]:
    lines = [
        text(
            MARGIN, MARGIN + 8, "Official score with the method minus without, 95 % interval over videos and seeds", ""
        )
    ]
    for number, (name, colour) in enumerate(zip(series, COLOURS, strict=True)):
        x, y = MARGIN + 200 * number, MARGIN + 30
        lines += [f"<circle cx='{x + 5}' cy='{y - 4}' r='4' fill='{colour}'/>", text(x + 15, y, name, "")]
    return lines


def axis(scale: Scale, top: float, bottom: float) -> list[str]:
    lines = []
    for value in scale.ticks():
        x, colour = scale.x(value), "#444444" if abs(value) < 1e-9 else "#dddddd"
        lines.append(f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{bottom}' stroke='{colour}'/>")
        lines.append(text(x, bottom + 18, f"{value:+.3f}" if abs(value) > 1e-9 else "0", "text-anchor='middle'"))
    return lines


def draw_row(row: Interval, y: float, scale: Scale) -> list[str]:
    lines = [text(MARGIN, y + ROW / 2, row.name, "")]
    for number, (ends, colour) in enumerate(zip(row.ends, COLOURS, strict=True)):
        if ends is not None:
            value, low, high = map(scale.x, ends)
            line = y + 6 + 9 * number
            lines.append(
                f"<line x1='{low:.1f}' y1='{line}' x2='{high:.1f}' y2='{line}' stroke='{colour}' stroke-width='2'/>"
            )
            lines.append(f"<circle cx='{value:.1f}' cy='{line}' r='4' fill='{colour}'/>")
    return lines


def text(x: float, y: float, content: str, attributes: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {attributes}>{escape(content)}</text>"

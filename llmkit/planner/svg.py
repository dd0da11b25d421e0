"""Line charts as one SVG file, with logarithmic axes and labels in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from llmkit.report.chart import SIZE, Scale, path

WIDTH, HEIGHT = 640, 360
"""Of a chart in pixels, with its labels."""
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 56, 44
"""Room for the labels."""
COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#718096")
STYLE = (
    "svg{font:12px system-ui,sans-serif;fill:#1a202c;background:#fff}.g{stroke:#cbd5e0}.l{fill:none;"
    "stroke-width:2}.t{font-weight:600}"
    "@media(prefers-color-scheme:dark){svg{fill:#e2e8f0;background:#1a202c}.g{stroke:#4a5568}}"
)


@dataclass(frozen=True)
class Line:
    """Points (x, y) above 0, joined."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines on logarithmic axes. x, y: what is along them."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]


def svg(charts: Iterable[Chart]) -> str:
    """The file: the charts that have points, below each other."""
    drawn = [chart for chart in charts if any(line.points for line in chart.lines)]
    body = "".join(
        f'<g transform="translate(0 {number * HEIGHT})">{"".join(_chart(chart))}</g>'
        for number, chart in enumerate(drawn)
    )
    height = max(1, len(drawn)) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><style>{STYLE}</style>{body}</svg>\n'
    )


def _chart(chart: Chart) -> Iterator[str]:
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = _scale([point[0] for line in chart.lines for point in line.points], 1.0)
    y = _scale([point[1] for line in chart.lines for point in line.points], 1.05)
    yield f'<text class="t" x="{LEFT}" y="18">{escape(chart.title)}</text>'
    for place, text in x.ticks():
        at = LEFT + width * place / 100
        yield f'<path class="g" d="M{at:.1f} {TOP}v{height}"/>'
        yield f'<text x="{at:.1f}" y="{TOP + height + 16}" text-anchor="middle">{text}</text>'
    for place, text in y.ticks():
        at = TOP + height * (1 - place / 100)
        yield f'<path class="g" d="M{LEFT} {at:.1f}h{width}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
    yield f'<text x="{LEFT + width / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x)}</text>'
    yield f'<text x="6" y="{TOP - 8}">{escape(chart.y)}</text>'
    scale = f'transform="translate({LEFT} {TOP}) scale({width / SIZE:g} {height / SIZE:g})"'
    at = float(LEFT)
    for line, color in zip(chart.lines, COLORS, strict=False):
        xs, ys = (np.array([point[n] for point in line.points]) for n in (0, 1))
        drawn = path(x.of(xs), SIZE - y.of(ys), len(line.points) == 1)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        stroke = f'vector-effect="non-scaling-stroke" stroke="{color}"{dashes}'
        yield f'<path class="l" {scale} {stroke} d="{drawn}"/>'
        yield f'<path d="M{at:.0f} 34h16" stroke="{color}" stroke-width="2"{dashes}/>'
        yield f'<text x="{at + 20:.0f}" y="38">{escape(line.name)}</text>'
        at += 32 + 7 * len(line.name)


def _scale(values: Sequence[float], room: float) -> Scale:
    low, high = min(values) / room, max(values) * room
    if high <= low:
        low, high = low / 2, high * 2
    return Scale(low, high, log=True)

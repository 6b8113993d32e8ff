"""The growth chart: latency of four requests over the number of stored runs, as an SVG that needs no text beside it."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 560, 70, 360
_COLOURS = ("#0b62a4", "#b5451b", "#2b7d3f", "#6b3fa0")
_LABEL_HEIGHT = 17


def growth_chart(series: Mapping[str, Mapping[int, float]]) -> str:
    """`series`: what is asked for -> runs in the database -> milliseconds (median)."""
    sizes = sorted(next(iter(series.values())))
    step = _step(max(max(line.values()) for line in series.values()))
    top = step * math.ceil(max(max(line.values()) for line in series.values()) * 1.05 / step)

    def x(size: int) -> float:
        share = math.log10(size / sizes[0]) / math.log10(sizes[-1] / sizes[0])
        return _LEFT + 15 + share * (_RIGHT - _LEFT - 30)

    def y(ms: float) -> float:
        return _BOTTOM - ms / top * (_BOTTOM - _TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        f"<title>Time to answer one request, {_runs(sizes[0])} to {_runs(sizes[-1])} stored runs</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="28" font-size="17" font-weight="bold">'
        f"Time to answer one request, {_runs(sizes[0])} to {_runs(sizes[-1])} stored runs</text>",
        f'<text x="{_LEFT}" y="48" fill="#555">one connection, one request after the other; medians; lower is better</text>',
    ]
    for number in range(round(top / step) + 1):
        height = y(number * step)
        parts.append(f'<line x1="{_LEFT}" y1="{height:.1f}" x2="{_RIGHT}" y2="{height:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for size in sizes:
        parts.append(f'<line x1="{x(size):.1f}" y1="{_BOTTOM}" x2="{x(size):.1f}" y2="{_BOTTOM + 5}" stroke="#222"/>')
        parts.append(f'<text x="{x(size):.1f}" y="{_BOTTOM + 21}" text-anchor="middle">{_runs(size)}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<line x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_BOTTOM}" stroke="#222"/>')
    parts.append(f'<text x="{middle}" y="{_BOTTOM + 46}" text-anchor="middle">stored runs (logarithmic scale)</text>')
    turned = f"translate(22 {(_TOP + _BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">latency (milliseconds)</text>')
    ends = _apart([y(line[sizes[-1]]) for line in series.values()])
    for (name, line), colour, label in zip(series.items(), _COLOURS, ends, strict=True):
        points = [(x(size), y(line[size])) for size in sizes]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}"/>' for across, down in points]
        across, down = points[-1]
        leader = f'x1="{across + 6:.1f}" y1="{down:.1f}" x2="{_RIGHT + 4}" y2="{label:.1f}"'
        parts.append(f'<line {leader} stroke="{colour}" opacity="0.5"/>')
        text = f"{escape(name)}: {line[sizes[-1]]:.2f} ms"
        parts.append(f'<text x="{_RIGHT + 8}" y="{label + 4:.1f}" fill="{colour}" font-weight="bold">{text}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _step(most: float) -> float:
    """A round distance between grid lines: about five of them up to `most`."""
    magnitude: float = 10 ** math.floor(math.log10(most / 5))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= most / 5)


def _runs(size: int) -> str:
    return f"{size / 1_000_000:g} million" if size >= 1_000_000 else f"{size / 1000:g} thousand"


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights of the labels, moved so far from each other that none covers another one, and none leaves the chart."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=lambda number: heights[number])
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + _LABEL_HEIGHT)
    for below, above in pairwise(order[::-1]):
        placed[below] = min(placed[below], _BOTTOM - 4)
        placed[above] = min(placed[above], placed[below] - _LABEL_HEIGHT)
    return placed

# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The few elements of SVG that the planner's pictures are made of."""

from __future__ import annotations

from html import escape

INK, NOTE = "#1c2733", "#55616d"


def opening(width: float, height: float) -> str:
    """The opening tag; close it with `</svg>`."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", color: str = INK, size: int = 11
) -> str:
    """Words at a place; `anchor` start, middle or end."""
    style = "" if size == 11 else f' font-size="{size}"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{style}>'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, color: str, *, title: str = "") -> str:
    """A filled rectangle, with words that a browser shows under the pointer."""
    shape = (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{color}"'
    )
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def boxes(places: list[tuple[float, float]], y: float, height: float, color: str) -> str:
    """Many rectangles of one row and color as one element: (x, width) each."""
    path = "".join(
        f"M{x:.1f} {y:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z" for x, width in places
    )
    return f'<path d="{path}" fill="{color}"/>' if places else ""

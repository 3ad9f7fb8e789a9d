"""Whether what is written in a colour can be read on a white terminal and on a black one."""

from __future__ import annotations

import re

# WCAG 2 asks for 3 of large text, and for 4.5 of small text, which no red of the cube has.
LEAST = 3.9
_SGR = re.compile("\x1b\\[([0-9;]*)m")


def colours_in(text: str) -> set[int]:
    """The colours (of 256) that something has there; what else changes how a text looks is a failure."""
    found = set()
    for sequence in _SGR.findall(text):
        # As usual, bold, and the terminal's own colours (39, 49) look as it wants.
        kind = re.fullmatch(r"(?:(?:0|1|39|49|38;5;(\d+));?)*", sequence)
        assert kind, f"nobody knows how {sequence!r} looks on another background"
        if kind[1]:
            found.add(int(kind[1]))
    return found


def contrast(colour: int, background: float) -> float:
    """WCAG 2's ratio between a colour of xterm's cube or greys and a background of that luminance."""
    assert 16 <= colour <= 255, "each terminal has its own first 16"
    steps = (0, 95, 135, 175, 215, 255)
    if colour < 232:
        parts = [steps[(colour - 16) // size % 6] / 255 for size in (36, 6, 1)]
    else:
        parts = [(8 + 10 * (colour - 232)) / 255] * 3
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    darker, lighter = sorted((luminance, background))
    return (lighter + 0.05) / (darker + 0.05)


def assert_readable(text: str, count: int) -> None:
    """It has at least so many colours, and each is seen on both."""
    colours = colours_in(text)
    assert len(colours) >= count, text
    for colour in colours:
        assert min(contrast(colour, 0.0), contrast(colour, 1.0)) >= LEAST, colour

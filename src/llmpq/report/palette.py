"""Colours that mean the same thing in every figure.

Options run from dark violet (many bits) to amber (few): lightness rises with every step, so the order survives colour blindness and
grey printing. Phases use the blue and orange of Okabe and Ito's colour-blind safe set. Strategies have no colour of their own: the one
in focus is told from the others by strength, and each is named where it is drawn.
"""

_OPTION_COLOURS = {
    "32": "#2b1a5a",
    "16": "#433e8c",
    "bf16": "#3a579a",
    "8": "#2c71a8",
    "w8a8-outlier": "#1f9a9c",
    "w8a8": "#43b97c",
    "4": "#a9cf46",
    "3": "#f5c242",
    "2": "#f08c2e",
}
_SPARE_OPTION_COLOURS = ("#9c6ade", "#c678b0", "#8d99a8", "#b08968")

PHASE_COLOURS = {"prefill": "#e69f00", "decode": "#3b8fd0"}
FOCUS = "#3b6fd4"
OTHER = "#8a94a6"
BYTE_KINDS = {
    "weights": "#4a6fa5",
    "kv": "#d98c5f",
    "embedding": "#7fa99b",
    "head": "#b7a26a",
    "workspace": "#b8bec9",
}
PAGE_INK = "rgb(1, 2, 3)"  # text that page.css recolours with the page's own ink, where it lies on a pale bar
DEVICE_COLOURS = ("#5b6475", "#aab2c0", "#808a9c", "#c9ced8")


def option_colour(option: str) -> str:
    """The colour of a weight option; an option unknown here gets a spare one, the same on every page."""
    if option in _OPTION_COLOURS:
        return _OPTION_COLOURS[option]
    return _SPARE_OPTION_COLOURS[sum(option.encode()) % len(_SPARE_OPTION_COLOURS)]


def ink_on(colour: str) -> str:
    """Black or white, whichever contrasts more with ``colour`` (WCAG relative luminance, threshold 0.179)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#10131a" if luminance > 0.179 else "#ffffff"

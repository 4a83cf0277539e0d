"""Pictures of disparity: coloured maps, error maps, and sheets of panels."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from numpy.typing import NDArray

from ea_psmnet.figures import Bar, GridStyle, Row, fitted, panel_grid

__all__ = [
    "colour_range",
    "coloured_beside_truth",
    "colourise",
    "disparity_bar",
    "error_bar",
    "error_map",
    "preview",
    "sheet",
]

# Without the first steps of Turbo, which are almost black: here black means unknown.
_STEPS = np.arange(16, 256, dtype=np.uint8)[:, None]
_TURBO = cv2.applyColorMap(_STEPS, cv2.COLORMAP_TURBO)[:, 0, ::-1]  # (240, 3) RGB

_LEAST_RANGE = 32
"""Smallest range of colours, in pixels: a smaller one would exaggerate noise."""

# Steps double as in KITTI's error images, here from 1/8 pixel on: blue below 1 pixel, red above.
_ERROR_STEPS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_ERROR_COLOURS = np.array(  # ColorBrewer's RdYlBu, which colour-blind people can read
    [
        (49, 54, 149),
        (69, 117, 180),
        (116, 173, 209),
        (198, 228, 240),
        (254, 224, 144),
        (253, 174, 97),
        (244, 109, 67),
        (190, 20, 38),
    ],
    np.uint8,
)


def colourise(disparity: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Colour a disparity map: blue at `low` (far), red at `high` (near), black where not finite.

    Args:
        disparity: (H, W) in pixels; values outside of the range get the colour of its end.
        low: Disparity of the first colour, in pixels.
        high: Disparity of the last colour, larger than `low`.

    Returns:
        (H, W, 3) uint8 RGB, in OpenCV's Turbo without its darkest end.

    Raises:
        ValueError: `high` is not larger than `low`.
    """
    if not low < high:
        raise ValueError(f"colours from {low} to {high} pixels; the second must be larger")
    known = np.isfinite(disparity)
    share = np.clip((np.where(known, disparity, low) - low) / (high - low), 0, 1)
    colours = _TURBO[np.rint(share * (len(_TURBO) - 1)).astype(np.uint8)]  # (H, W, 3)
    return np.where(known[..., None], colours, np.uint8(0))


def error_map(
    disparity: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Colour the absolute error: blue below 1 pixel, yellow to red from there to 8 and more.

    Steps double from 1/8 to 8 pixels. A prediction that is not finite counts as 8 and more.

    Args:
        disparity: (H, W) in pixels.
        truth: (H, W), ground truth in pixels.
        valid: (H, W), true at valid pixels; others are black.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    error = np.where(np.isfinite(disparity), np.abs(disparity - truth), np.inf)
    colours = _ERROR_COLOURS[np.digitize(error, _ERROR_STEPS)]  # (H, W, 3)
    return np.where(valid[..., None], colours, np.uint8(0))


def coloured_beside_truth(
    disparity: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> tuple[list[NDArray[np.uint8]], tuple[float, float]]:
    """Colour prediction, error and ground truth.

    Args:
        disparity: (H, W) in pixels.
        truth: (H, W), ground truth in pixels.
        valid: (H, W), true at valid pixels; others are black in error and ground truth.

    Returns:
        The three pictures (H, W, 3), and the range of colours that prediction and ground truth
        share: that of the ground truth, or of the prediction if no pixel is valid.
    """
    known = np.where(valid, truth, np.nan)
    low, high = colour_range(known if valid.any() else disparity)
    pictures = [
        colourise(disparity, low, high),
        error_map(disparity, truth, valid),
        colourise(known, low, high),
    ]
    return pictures, (low, high)


def sheet(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    title: str,
) -> NDArray[np.uint8]:
    """Draw left image, prediction, error and ground truth as four panels with colour bars.

    Prediction and ground truth share the range of colours of the ground truth; black is unknown.

    Args:
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels.
        truth: (H, W), ground truth in pixels.
        valid: (H, W), true at valid pixels.
        title: One line above the panels.

    Returns:
        (h, w, 3) uint8 RGB, each panel's longer side 960 pixels.
    """
    pictures, colours = coloured_beside_truth(disparity, truth, valid)
    predicted, error, known = map(_panel, pictures)
    image = fitted(left, _SIDE, _SIDE, cv2.INTER_AREA)
    rows = [
        Row((image, predicted), captions=_CAPTIONS[:2]),
        Row((error, known), captions=_CAPTIONS[2:]),
    ]
    bars = [error_bar(), disparity_bar(*colours)]
    return panel_grid(rows, _style(image), title=title, bars=bars)


def preview(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    confidence: NDArray[np.floating] | None = None,
) -> NDArray[np.uint8]:
    """Draw the left image beside its coloured disparity, and its confidence, with colour bars.

    Args:
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels; black where not finite.
        confidence: (H, W) from 0 to 1; None leaves its panel out.

    Returns:
        (h, w, 3) uint8 RGB, each panel's longer side 960 pixels.
    """
    low, high = colour_range(disparity)
    image = fitted(left, _SIDE, _SIDE, cv2.INTER_AREA)
    panels, captions = [image, _panel(colourise(disparity, low, high))], ["Left image", "Disparity"]
    bars = [None, disparity_bar(low, high)]
    if confidence is not None:
        colours = ScalarMappable(Normalize(0, 1), "cividis")
        panels.append(_panel(colours.to_rgba(confidence, bytes=True)[..., :3]))
        captions.append("Confidence")
        bars.append(Bar("probability of an error below 1 px", colours))
    return panel_grid([Row(panels, captions=captions)], _style(image), bars=bars)


_SIDE = 960
"""Pixels of a panel's longer side."""

_CAPTIONS = ("Left image", "Predicted disparity", "Absolute error", "True disparity")


def _panel(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return fitted(image, _SIDE, _SIDE)


def _style(panel: NDArray[np.uint8]) -> GridStyle:
    return GridStyle(panel.shape[1], 24, 0, line=44, size=14, title=56, title_size=18)


def disparity_bar(low: float, high: float) -> Bar:
    """Colour bar of `colourise`."""
    colours = ScalarMappable(Normalize(low, high), ListedColormap(_TURBO / 255))
    return Bar("disparity in pixels, far to near; black: unknown", colours)


def error_bar() -> Bar:
    """Colour bar of `error_map`."""
    colours = ListedColormap(_ERROR_COLOURS / 255)
    norm = BoundaryNorm((0, *_ERROR_STEPS), colours.N, extend="max")
    label = "absolute error in pixels; black: no truth"
    return Bar(label, ScalarMappable(norm, colours), (0, *_ERROR_STEPS))


def colour_range(disparity: NDArray[np.floating]) -> tuple[float, float]:
    """The middle 98 % of disparities, at least 32 pixels, rounded to whole pixels.

    It starts at 0 if that is near. Outliers do not compress the colours of all other pixels, and
    noise of a flat scene does not fill the whole range of colours.
    """
    known = disparity[np.isfinite(disparity)]
    if known.size == 0:
        return 0.0, float(_LEAST_RANGE)
    low, high = np.percentile(known, (1, 99))
    low, high = np.floor(low), np.ceil(high)
    short = max(0, _LEAST_RANGE - (high - low))
    low = max(low - short // 2, min(low, 0))
    return float(low), float(max(high, low + _LEAST_RANGE))

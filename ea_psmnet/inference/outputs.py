"""Pictures of disparity: coloured maps, error maps, and sheets of panels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from numpy.typing import NDArray

from ea_psmnet.figures import Bar, Extend, GridStyle, Row, fitted, panel_grid
from ea_psmnet.sample import StereoSample, at_columns

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


def colour_table() -> NDArray[np.uint8]:
    """The colours of `colourise` from far to near, (240, 3) RGB."""
    return np.asarray(_TURBO, np.uint8)


def error_map(
    disparity: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Colour the absolute error as (H, W, 3) uint8 RGB: blue below 1 pixel, yellow to red above.

    Steps double from 1/8 to 8 pixels. A prediction that is not finite counts as 8 and more.

    Args:
        disparity: (H, W) in pixels.
        truth: (H, W), ground truth in pixels.
        valid: (H, W), true at valid pixels; others are black.
    """
    error = np.where(np.isfinite(disparity), np.abs(disparity - truth), np.inf)
    colours = _ERROR_COLOURS[np.digitize(error, _ERROR_STEPS)]  # (H, W, 3)
    return np.where(valid[..., None], colours, np.uint8(0))


def coloured_beside_truth(
    disparity: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> tuple[list[NDArray[np.uint8]], Bar]:
    """Colour prediction, error and ground truth; for the arguments see `error_map`.

    Sparse points, as a laser scanner measures, are drawn larger.

    Returns:
        The three pictures (H, W, 3), and the colour bar that prediction and ground truth share.
    """
    known = np.where(valid, truth, np.nan)
    low, high = colour_range(disparity, known)
    pictures = [
        colourise(disparity, low, high),
        _readable(error_map(disparity, truth, valid), valid),
        _readable(colourise(known, low, high), valid),
    ]
    return pictures, disparity_bar(low, high, disparity, known)


def is_sparse(valid: NDArray[np.bool_]) -> bool:
    """Whether most of the valid pixels (H, W) are single points, like those of a laser scanner."""
    inner = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8))
    return bool(2 * inner.sum() < valid.sum())


def _readable(picture: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Extend the colours of sparse points over the pixels around them."""
    if not is_sparse(valid) or not valid.any():
        return picture
    distance, labels = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((labels.max() + 1, 3), np.uint8)
    colours[labels[valid]] = picture[valid]
    return np.where((distance <= _POINT_RADIUS)[..., None], colours[labels], np.uint8(0))


def sheet(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    title: str,
) -> NDArray[np.uint8]:
    """Draw left image, prediction, error and ground truth as four panels with colour bars.

    Args:
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels.
        truth: (H, W), ground truth in pixels.
        valid: (H, W), true at valid pixels.
        title: One line above the panels; sizes and ranges follow below it.

    Returns:
        (h, w, 3) uint8 RGB, each panel's longer side 960 pixels.
    """
    pictures, bar = coloured_beside_truth(disparity, truth, valid)
    predicted, error, known = map(_panel, pictures)
    image = fitted(left, _SIDE, _SIDE, cv2.INTER_AREA)
    captions = ["Left image", "Predicted disparity", "Absolute error", "Ground truth"]
    if is_sparse(valid):
        captions[2:] = (f"{caption}, its points drawn larger" for caption in captions[2:])
    rows = [
        Row((image, predicted), captions=captions[:2]),
        Row((error, known), captions=captions[2:]),
    ]
    details = (
        f"{_size(left)}; predicted {_range(disparity)}; ground truth "
        f"{_range(np.where(valid, truth, np.nan))}, known at {valid.mean():.0%} of the pixels"
    )
    bars = [error_bar(complete=bool(valid.all())), bar]
    return panel_grid(rows, _style(image), title=title, details=details, bars=bars)


def preview(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    confidence: NDArray[np.floating] | None = None,
    *,
    name: str = "",
    beside: bool = True,
    colours: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Draw the coloured disparity beside the left image, or alone, with a colour bar.

    Args:
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels; black where not finite.
        confidence: (H, W) from 0 to 1; None leaves its panel out.
        name: Name of the pair, for the title.
        beside: Whether to draw the left image as well.
        colours: Disparities of the first and the last colour; None for those of the pair.

    Returns:
        (h, w, 3) uint8 RGB, each panel's longer side 960 pixels.
    """
    low, high = colours or colour_range(disparity)
    panels, captions = [_panel(colourise(disparity, low, high))], ["Disparity"]
    bars: list[Bar | None] = [disparity_bar(low, high, disparity)]
    if beside:
        panels.insert(0, fitted(left, _SIDE, _SIDE, cv2.INTER_AREA))
        captions.insert(0, "Left image")
        bars.insert(0, None)
    if confidence is not None:
        scale = ScalarMappable(Normalize(0, 1), "cividis")
        panels.append(_panel(scale.to_rgba(confidence, bytes=True)[..., :3]))
        captions.append("Confidence")
        bars.append(Bar("probability of an error below 1 px", scale))
    details = f"{_size(left)}, disparity {_range(disparity)}"
    row, style = Row(panels, captions=captions), _style(panels[0])
    return panel_grid([row], style, title=name or "Disparity", details=details, bars=bars)


_SIDE = 960
"""Pixels of a panel's longer side."""

_POINT_RADIUS = 3
"""Pixels around a sparse point that get its colour: about the distance of a scanner's rows."""


def _panel(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return fitted(image, _SIDE, _SIDE)


def _style(panel: NDArray[np.uint8]) -> GridStyle:
    return GridStyle(panel.shape[1], 24, 0, line=44, size=14, title=84, title_size=18)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]} px"


def _range(disparity: NDArray[np.floating]) -> str:
    """Text of the range of a disparity map (H, W)."""
    known = disparity[np.isfinite(disparity)]
    return f"{known.min():.1f} to {known.max():.1f} px" if known.size else "unknown"


def disparity_bar(low: float, high: float, *maps: NDArray[np.floating]) -> Bar:
    """Colour bar of `colourise`.

    Args:
        low: Disparity of the first colour, in pixels.
        high: Disparity of the last colour.
        maps: Maps that are drawn, (H, W) each: the bar has arrows at ends that their values
            exceed, and explains black if they have unknown pixels.
    """
    colours = ScalarMappable(Normalize(low, high), ListedColormap(_TURBO / 255))
    values = np.concatenate([each.ravel() for each in maps]) if maps else np.zeros(0)
    known = np.isfinite(values)
    black = "" if known.all() else "; black: unknown"
    return Bar(
        f"disparity in pixels{black}",
        colours,
        extend=arrows((values[known] < low).any(), (values[known] > high).any()),
        ends=("far", "near"),
    )


def arrows(below: bool | np.bool_, above: bool | np.bool_) -> Extend:
    """Arrows of a colour bar for values below and above its range."""
    if below:
        return "both" if above else "min"
    return "max" if above else "neither"


def error_bar(*, complete: bool) -> Bar:
    """Colour bar of `error_map`; `complete`: there is ground truth at every pixel."""
    colours = ListedColormap(_ERROR_COLOURS / 255)
    norm = BoundaryNorm((0, *_ERROR_STEPS), colours.N, extend="max")
    label = "absolute error in pixels" + ("" if complete else "; black: no ground truth")
    return Bar(label, ScalarMappable(norm, colours), (0, *_ERROR_STEPS), "max")


def colour_range(*maps: NDArray[np.floating]) -> tuple[float, float]:
    """A range of colours for disparity maps (H, W): the middle 98 % of each, in whole pixels.

    Outliers do not compress the colours of all other pixels. The range is at least 32 pixels wide,
    so that the noise of a flat scene does not fill it, and starts at 0 if that is near.
    """
    known = [each[np.isfinite(each)] for each in maps]
    ranges = [np.percentile(each, (1, 99)) for each in known if each.size]
    if not ranges:
        return 0.0, float(_LEAST_RANGE)
    low, high = np.floor(min(r[0] for r in ranges)), np.ceil(max(r[1] for r in ranges))
    short = max(0, _LEAST_RANGE - (high - low))
    low = max(low - short // 2, 0) if low >= 0 else low - short // 2
    return float(low), float(max(high, low + _LEAST_RANGE))


# A sheet of many pairs ----------------------------------------------------------------------------

_CONTACT_STYLE = GridStyle(320, 12, 20, line=26, size=10, title=26, title_size=12)
_GAIN = 6
"""Factor on grey levels of the difference: well matched pixels differ by 3 to 5, which would look
black."""
_NOT_COMPARED = np.array((40, 60, 120), np.uint8)
_COLUMNS = (
    "left",
    "right",
    "disparity in px, colours at the right",
    f"left minus warped right, times {_GAIN}; blue: none",
)


def contact_sheet(samples: Sequence[StereoSample], title: str) -> NDArray[np.uint8]:
    """Draw pairs, a row each: both views, ground truth, and how well it maps one to the other.

    Where ground truth and pair agree, the last column is dark except for what only one view sees
    and for differences in exposure.

    Args:
        samples: At least one pair.
        title: One line above.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    return panel_grid(
        [_contact_row(sample) for sample in samples], _CONTACT_STYLE, title=title, columns=_COLUMNS
    )


def warp_difference(sample: StereoSample) -> NDArray[np.float32]:
    """Mean absolute difference of the left image and the right one sampled at x - d.

    Returns:
        (H, W) grey levels, NaN where ground truth is unknown or the match lies outside the image.
    """
    there = np.arange(sample.disparity.shape[1], dtype=np.float32) - sample.disparity
    difference = np.abs(sample.left - at_columns(sample.right, there)).mean(-1)
    return np.where(sample.valid & (there >= 0), difference, np.float32(np.nan))


def _contact_row(sample: StereoSample) -> Row:
    truth = np.where(sample.valid, sample.disparity, np.nan)
    low, high = colour_range(truth)
    difference = warp_difference(sample)[..., None]
    grey = np.minimum(_GAIN * np.nan_to_num(difference), 255).astype(np.uint8)
    drawn = np.where(np.isnan(difference), _NOT_COMPARED, grey)
    pictures = (sample.left, sample.right, colourise(truth, low, high), drawn)
    small = [fitted(each, _CONTACT_STYLE.width, interpolation=cv2.INTER_AREA) for each in pictures]
    height, width = truth.shape
    known = truth[sample.valid]
    told = f"{known.min():.1f} to {known.max():.1f} pixels" if known.size else "no ground truth"
    caption = f"{sample.name}: {width}x{height}, {told}, {sample.valid.mean():.0%} known"
    return Row(small, headings=(caption,), bar=disparity_bar(low, high, truth))

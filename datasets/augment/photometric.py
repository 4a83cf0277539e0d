"""Photometric augmentation: colours and details change as between cameras, geometry does not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.sample import StereoSample

_Image = NDArray[np.uint8]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Tone:
    """Factors of a colour change. As ranges, a value r stands for factors from 1 / r to r."""

    exposure: float = 1.0
    """Factor on all channels."""
    contrast: float = 1.0
    """Factor on the distance to the image's mean."""
    gamma: float = 1.0
    """Exponent of values in [0, 1]."""
    saturation: float = 1.0
    """Factor on the distance to grey."""
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors on red, green and blue (white balance)."""

    def factors(self) -> NDArray[np.float64]:
        """Return all seven factors, (7,), in the order of the fields."""
        return np.array([self.exposure, self.contrast, self.gamma, self.saturation, *self.gains])

    def draw(self, rng: np.random.Generator) -> Tone:
        """Draw a tone within these ranges, log-uniformly."""
        return _tone(self.factors() ** rng.uniform(-1, 1, 7))

    def __mul__(self, other: Tone) -> Tone:
        return _tone(self.factors() * other.factors())


def _tone(factors: NDArray[np.float64]) -> Tone:
    exposure, contrast, gamma, saturation, *gains = factors.tolist()
    return Tone(exposure, contrast, gamma, saturation, (gains[0], gains[1], gains[2]))


@dataclass(frozen=True)
class Photometric:
    """Strength and probability of photometric augmentation."""

    shared: Tone = field(default_factory=lambda: Tone(1.25, 1.25, 1.25, 1.4, (1.1, 1.1, 1.1)))
    """Ranges of the change that is the same for both views, always applied."""
    own: Tone = field(default_factory=lambda: Tone(1.3, 1.2, 1.3, 1.3, (1.2, 1.2, 1.2)))
    """Ranges of the change drawn for each view; two views may differ by their square."""
    own_probability: float = 0.5
    """Share of samples whose views differ in colour."""
    grey_probability: float = 0.05
    """Share of samples converted to grey."""
    one_grey_probability: float = 0.02
    """Share of samples with one view converted to grey."""
    blur_probability: float = 0.15
    """Share of views that are blurred."""
    blur: float = 1.5
    """Largest standard deviation in pixels, drawn separately for x and y."""
    noise_probability: float = 0.3
    """Share of views with added noise."""
    noise: float = 8.0
    """Largest standard deviation in grey levels, of 255."""
    jpeg_probability: float = 0.1
    """Share of views with JPEG compression."""
    jpeg_quality: tuple[int, int] = (30, 90)
    """Lowest and highest JPEG quality."""
    patch_probability: float = 0.4
    """Share of samples with patches of the right image covered."""
    patches: int = 3
    """Largest number of patches."""
    patch_side: tuple[float, float] = (0.1, 0.35)
    """Smallest and largest side of a patch, as a share of the image height."""


def photometric(
    sample: StereoSample, ranges: Photometric, rng: np.random.Generator
) -> StereoSample:
    """Change colours and details of both views, and cover patches of the right view.

    Covered pixels stay valid: the network should infer them from their surroundings. Masks also
    stay unchanged and describe the original scene. The images of `sample` are not modified.
    """
    right = sample.right
    if rng.random() < ranges.patch_probability:
        right = _covered(right, ranges, rng)
    views = zip((sample.left, right), _draw_tones(ranges, rng), strict=True)
    left, right = (_degraded(view, tone, ranges, rng) for view, tone in views)
    return replace(sample, left=left, right=right)


def _draw_tones(ranges: Photometric, rng: np.random.Generator) -> list[Tone]:
    """Draw the tones of the left and the right view."""
    shared = ranges.shared.draw(rng)
    tones = [shared, shared]
    if rng.random() < ranges.own_probability:
        tones = [shared * ranges.own.draw(rng) for _ in tones]
    if rng.random() < ranges.grey_probability:
        tones = [replace(tone, saturation=0.0) for tone in tones]
    if rng.random() < ranges.one_grey_probability:
        view = int(rng.integers(2))
        tones[view] = replace(tones[view], saturation=0.0)
    return tones


def _degraded(view: _Image, tone: Tone, ranges: Photometric, rng: np.random.Generator) -> _Image:
    """Change a view as another camera would: lens, exposure, sensor noise, compression."""
    if rng.random() < ranges.blur_probability:
        view = _blurred(view, rng.uniform(0, ranges.blur, 2))
    view = toned(view, tone)
    if rng.random() < ranges.noise_probability:
        view = _noisy(view, rng.uniform(0, ranges.noise), rng)
    if rng.random() < ranges.jpeg_probability:
        view = _compressed(view, int(rng.integers(*ranges.jpeg_quality, endpoint=True)))
    return view


def _blurred(view: _Image, deviations: NDArray[np.float64]) -> _Image:
    across, down = deviations.clip(0.1).tolist()  # 0 would let OpenCV choose
    return np.asarray(cv2.GaussianBlur(view, (0, 0), across, sigmaY=down), np.uint8)


def _noisy(view: _Image, deviation: float, rng: np.random.Generator) -> _Image:
    grain = rng.standard_normal(view.shape, np.float32) * np.float32(deviation)
    return np.asarray(cv2.add(view, grain, dtype=cv2.CV_8U), np.uint8)


def toned(view: _Image, tone: Tone) -> _Image:
    """Change the saturation of an (H, W, 3) RGB image, then apply a curve to each channel."""
    keep = tone.saturation
    mixed = cv2.transform(view, keep * np.eye(3) + (1 - keep) * np.tile(_LUMA, (3, 1)))
    mean = float(np.dot(cv2.mean(mixed)[:3], _LUMA)) / 255
    light = np.linspace(0, 1, 256)[:, None] * tone.exposure * np.array(tone.gains)  # (256, 3)
    pivot = mean * tone.exposure
    curve = np.clip((light - pivot) * tone.contrast + pivot, 0, 1) ** tone.gamma
    return np.asarray(cv2.LUT(mixed, np.rint(255 * curve).astype(np.uint8)[:, None]), np.uint8)


def _compressed(view: _Image, quality: int) -> _Image:
    """Compress and decompress as JPEG. OpenCV expects blue first."""
    swapped = cv2.cvtColor(view, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _covered(right: _Image, ranges: Photometric, rng: np.random.Generator) -> _Image:
    """Fill rectangles with the mean colour of the image, or rotate their content by 180 degrees."""
    covered = right.copy()
    rows, columns = right.shape[:2]
    for _ in range(rng.integers(1, ranges.patches, endpoint=True)):
        sides = np.rint(rng.uniform(*ranges.patch_side, 2) * rows).astype(int).clip(1)
        height, width = min(int(sides[0]), rows), min(int(sides[1]), columns)
        top, start = rng.integers((rows - height + 1, columns - width + 1)).tolist()
        patch = covered[top : top + height, start : start + width]
        plain = rng.random() < 0.5
        # A rotation keeps the texture, but no window around a pixel matches any more.
        patch[:] = np.rint(cv2.mean(right)[:3]) if plain else patch[::-1, ::-1].copy()
    return covered

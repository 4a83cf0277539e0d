"""Camera sensor: exposure, colour, blur, noise and encoding turn linear light into 8-bit images.

The ground truth is unaffected; it belongs to the pixel centres.
"""

from __future__ import annotations

from itertools import pairwise, product

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.synthetic.scene import Sensor
from ea_psmnet.datasets.synthetic.shading import DISPLAY_GAMMA

Linear = NDArray[np.float32]
Picture = NDArray[np.uint8]
_BLURS = (1.0, 2.0, 4.0)
"""Standard deviations of the blurred images that defocus is interpolated from."""


def encoded(linear: Linear, gamma: float = DISPLAY_GAMMA) -> Picture:
    """Encode (H, W, 3) linear light in [0, 1] as bytes; brighter values are clipped."""
    return np.round(linear.clip(0, 1) ** (1 / gamma) * 255).astype(np.uint8)


def exposure(sensor: Sensor, left: Linear) -> float:
    """Return the gain that brings the median of the left image to the sensor's target.

    It is limited by the sensor's headroom, so that only few pixels are overexposed.
    """
    brightness = left.mean(2)
    middle, bright = np.percentile(brightness[::2, ::2], (50, 95))
    return float(min(sensor.target / max(middle, 1e-4), sensor.headroom / max(bright, 1e-4)))


def sensed(
    sensor: Sensor, left: Linear, right: Linear, disparities: tuple[Linear, Linear]
) -> tuple[Picture, Picture]:
    """Return both images as the cameras record them.

    Args:
        sensor: Parameters of the sensor.
        left: (H, W, 3) linear light after exposure.
        right: (H, W, 3) linear light after exposure.
        disparities: (H, W) disparities of the left and the right view, for defocus.
    """
    left, right = _lens(sensor, left, right, disparities)
    rng = np.random.Generator(np.random.PCG64(sensor.seed))
    pictures = []
    for linear, balance, blur, gamma in zip(
        (left, right), sensor.balance, sensor.blur, sensor.gamma, strict=True
    ):
        light = linear * balance.astype(np.float32)
        if blur > 0:
            light = cv2.GaussianBlur(light, (0, 0), blur)
        variance = sensor.read_noise**2 + sensor.shot_noise * light.clip(0, 1)
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        pictures.append(encoded(light + np.sqrt(variance) * noise, gamma))
    return pictures[0], pictures[1]


def _lens(
    sensor: Sensor, left: Linear, right: Linear, disparities: tuple[Linear, Linear]
) -> tuple[Linear, Linear]:
    """Apply defocus and motion blur to both images."""
    if sensor.aperture > 0:
        focused = float(np.quantile(disparities[0][::4, ::4], sensor.focus))
        left = _out_of_focus(left, sensor.aperture * np.abs(disparities[0] - focused))
        right = _out_of_focus(right, sensor.aperture * np.abs(disparities[1] - focused))
    if any(sensor.shake):
        kernel = _line(*sensor.shake)
        left, right = _filtered(left, kernel), _filtered(right, kernel)
    return left, right


def _filtered(linear: Linear, kernel: Linear) -> Linear:
    return np.asarray(cv2.filter2D(linear, -1, kernel), np.float32)


def _out_of_focus(linear: Linear, deviation: Linear) -> Linear:
    """Blur each pixel by its own standard deviation (H, W), at most the last of `_BLURS`.

    The circle of confusion of a thin lens is proportional to the difference of inverse depths, and
    so of disparities.
    """
    sharper, result = linear, linear.copy()
    for low, high in pairwise((0.0, *_BLURS)):
        softer = np.asarray(cv2.GaussianBlur(linear, (0, 0), high), np.float32)
        share = ((deviation - low) / (high - low)).clip(0, 1)[..., None]
        result += share * (softer - sharper)
        sharper = softer
    return result


def _line(x: float, y: float) -> Linear:
    """Return the kernel of a motion by (x, y) pixels; symmetric, so that it shifts nothing."""
    reach = int(np.ceil(max(abs(x), abs(y)) / 2)) + 1
    steps = np.linspace(-0.5, 0.5, 8 * reach + 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    across, down = reach + steps * x, reach + steps * y
    left, top = np.floor(across).astype(int), np.floor(down).astype(int)
    for right, lower in product((0, 1), repeat=2):
        weight = np.abs(1 - right - (across - left)) * np.abs(1 - lower - (down - top))
        np.add.at(kernel, (top + lower, left + right), weight)
    return kernel / kernel.sum()

"""From linear light to the bytes of a picture: exposure, colour, blur, noise and encoding."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.synthetic.light import DISPLAY_GAMMA
from datasets.synthetic.scene import Sensor

Linear = NDArray[np.float32]
Picture = NDArray[np.uint8]


def encoded(linear: Linear, gamma: float = DISPLAY_GAMMA) -> Picture:
    """(H, W, 3) linear light in [0, 1] as bytes; what is brighter is clipped."""
    return np.round(linear.clip(0, 1) ** (1 / gamma) * 255).astype(np.uint8)


def exposure(sensor: Sensor, left: Linear) -> float:
    """The gain that brings the left picture's median to the target and burns out little of it."""
    brightness = left.mean(2)
    middle, bright = np.percentile(brightness[::2, ::2], (50, 95))
    return float(min(sensor.target / max(middle, 1e-4), 1.15 / max(bright, 1e-4)))


def sensed(sensor: Sensor, left: Linear, right: Linear) -> tuple[Picture, Picture]:
    """Both pictures as their cameras record them.

    Args:
        sensor: its parameters.
        left: (H, W, 3) linear light, exposed.
        right: (H, W, 3) likewise.
    """
    rng = np.random.Generator(np.random.PCG64(sensor.seed))
    pictures = []
    for linear, balance, blur in zip((left, right), sensor.balance, sensor.blur, strict=True):
        light = linear * balance.astype(np.float32)
        if blur > 0:
            light = cv2.GaussianBlur(light, (0, 0), blur)
        variance = sensor.read_noise**2 + sensor.shot_noise * light.clip(0, 1)
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        pictures.append(encoded(light + np.sqrt(variance) * noise, sensor.gamma))
    return pictures[0], pictures[1]

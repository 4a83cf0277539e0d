"""Made-up samples: small ones whose errors are worked out by hand, and pairs of noise on disk."""

from __future__ import annotations

import numpy as np

from ea_psmnet.files import write_image, write_npy
from ea_psmnet.sample import StereoSample


def made_pair(truth, name="pair", valid=None, nonocc=None):
    """A sample whose truth is given, (H, W) or one row (W,); the images are grey."""
    disparity = np.atleast_2d(np.asarray(truth, np.float32))
    shape = disparity.shape
    known = np.ones(shape, bool) if valid is None else np.atleast_2d(np.asarray(valid, bool))
    masks = {} if nonocc is None else {"nonocc": np.atleast_2d(np.asarray(nonocc, bool))}
    image = np.full((*shape, 3), 128, np.uint8)
    return StereoSample(image, image, disparity, known, name, masks)


def prediction(values):
    """(H, W) float32 of rows, or of one row."""
    return np.atleast_2d(np.asarray(values, np.float32))


def write_noise_pair(folder, rng, size, shift):
    """Write left.png, right.png and disp.npy of noise that is shifted by some pixels."""
    height, width = size
    wide = rng.integers(0, 256, (height, width + shift, 3), dtype=np.uint8)
    write_image(folder / "left.png", wide[:, :width])
    write_image(folder / "right.png", wide[:, shift:])
    write_npy(folder / "disp.npy", np.full(size, shift, np.float32))
    return folder

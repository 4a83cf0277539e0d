"""Made-up samples, so small that their errors are worked out by hand."""

from __future__ import annotations

import numpy as np

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

from dataclasses import replace

import numpy as np
import pytest

from ea_psmnet.sample import StereoSample

IMAGE = np.zeros((4, 6, 3), np.uint8)
DISPARITY = np.zeros((4, 6), np.float32)
GOOD = StereoSample(IMAGE, IMAGE, DISPARITY, DISPARITY >= 0, "a/b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"left": IMAGE[:, :5]},
        {"right": IMAGE.astype(np.float32)},
        {"disparity": DISPARITY.astype(np.float64)},
        {"valid": DISPARITY},
        {"left": IMAGE[..., 0]},
    ],
)
def test_wrong_arrays_are_named(wrong):
    with pytest.raises(ValueError, match=rf"a/b: {next(iter(wrong))} is .* expected"):
        replace(GOOD, **wrong)


@pytest.mark.parametrize("mask", [np.zeros((4, 6)), np.zeros((6, 4), bool)])
def test_a_wrong_mask_is_named(mask):
    assert dict(GOOD.masks) == {}
    good = replace(GOOD, masks={"nonocc": np.ones((4, 6), bool)})
    with pytest.raises(ValueError, match=r"a/b: mask in_frame is .* expected bool \(4, 6\)"):
        replace(good, masks={**good.masks, "in_frame": mask})

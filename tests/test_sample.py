from dataclasses import replace

import numpy as np
import pytest

from ea_psmnet.sample import StereoSample, at_columns

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
        {"disparity": DISPARITY[0]},
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


@pytest.mark.parametrize("shape", [(130, 9), (3, 5, 3), (1, 1)])
def test_values_between_columns_are_linear(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    columns = rng.uniform(-2, shape[1] + 1, (shape[0], 7)).astype(np.float32)
    found = at_columns(image, columns)
    channels = image.reshape(*shape[:2], -1)
    for row in range(shape[0]):
        for channel in range(channels.shape[2]):
            expected = np.interp(columns[row], np.arange(shape[1]), channels[row, :, channel])
            values = found[row] if image.ndim == 2 else found[row, :, channel]
            np.testing.assert_allclose(values, expected, atol=1e-3)


def test_images_may_be_wider_than_opencv_bears():
    image = np.arange(40_000, dtype=np.float32)[None]
    found = at_columns(image, np.array([[0.5, 39_998.25, 50_000]], np.float32))
    assert found.tolist() == [[0.5, 39_998.25, 39_999]]

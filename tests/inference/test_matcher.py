from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ea_psmnet import PSMNetConfig, StereoMatcher, StereoResult, build_model
from ea_psmnet.calibration import Calibration
from ea_psmnet.files import read_image
from ea_psmnet.inference.matcher import DEFAULT
from ea_psmnet.inference.memory_plan import pairs_at_once, whole_bytes
from ea_psmnet.inference.pairs import predicted_at_scale
from ea_psmnet.models.psmnet import PlainPSMNet
from ea_psmnet.models.weights import NotFiniteError, load_model, save_model

CONFIG = PSMNetConfig(max_disparity=32, width=0.25)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build_model(CONFIG)
    for classifier in model.aggregation.classifiers:
        classifier[2].weight.data *= 1e-4  # undecided, as an untrained network should be
    return model.eval()


@pytest.fixture(scope="module")
def matcher(network):
    return StereoMatcher(network, device="cpu", precision="exact")


def pair(height=32, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2)]


def test_a_single_column_has_a_right_view(matcher):
    with pytest.warns(UserWarning, match="1 px wide"):
        result = matcher(*pair(5, 1), right_view=True)
    assert result.right.shape == (5, 1)


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (47, 79), (16, 32), (5, 40)])
def test_any_size_comes_back_as_it_went_in(matcher, size):
    disparity = matcher(*pair(*size)).disparity
    assert disparity.shape == size
    assert disparity.dtype == np.float32
    assert np.isfinite(disparity).all()


def test_padding_is_psmnets_top_and_right_in_the_mean_colour(matcher, network):
    left, right = pair(30, 60)
    padded = []
    for image in (left, right):
        canvas = network.mean.expand(3, 32, 64).clone()
        canvas[:, 2:, :60] = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        padded.append(canvas[None])
    with torch.no_grad():
        expected = network(*padded).disparity[0, 2:, :60].numpy()
    np.testing.assert_allclose(matcher(left, right).disparity, expected, rtol=0, atol=0.02)


def test_the_result_outlives_the_next_call(matcher):
    first = matcher(*pair()).disparity
    kept = first.copy()
    matcher(*[image[::-1] for image in pair()])
    assert np.array_equal(first, kept)


def batches(matcher, pairs):
    """Results of a batch, and the shapes of what the network was given."""
    shapes = []
    hook = matcher.model.register_forward_pre_hook(
        lambda _, images: shapes.append(tuple(images[0].shape))
    )
    results = matcher.match(pairs)
    hook.remove()
    return results, shapes


def test_pairs_of_one_padded_size_are_predicted_together_and_as_alone(matcher):
    sizes = [(32, 64), (47, 79), (30, 60), (17, 50)]
    pairs = [pair(*size, seed=seed) for seed, size in enumerate(sizes)]
    results, shapes = batches(matcher, pairs)
    assert shapes == [(3, 3, 32, 64), (1, 3, 48, 80)]
    for images, size, result in zip(pairs, sizes, results, strict=True):
        assert result.disparity.shape == size
        alone = matcher(*images).disparity
        assert alone.std() > 0.1
        np.testing.assert_allclose(result.disparity, alone, rtol=0, atol=2e-3)


def test_a_batch_is_cut_to_the_memory_there_is(matcher, monkeypatch):
    room = whole_bytes(CONFIG, (32, 64), 4, pairs=2)
    monkeypatch.setattr(matcher, "_room", room)
    _, shapes = batches(matcher, [pair(seed=seed) for seed in range(5)])
    assert [shape[0] for shape in shapes] == [2, 2, 1]
    assert pairs_at_once(CONFIG, (32, 64), 4, room - 1) == 1
    assert pairs_at_once(CONFIG, (32, 64), 4, 0) == 1  # which is then cut in tiles, or refused


def test_one_pair_that_is_none_refuses_the_batch(matcher):
    with pytest.raises(ValueError, match="left 64 x 32, right 80 x 32"):
        matcher.match([pair(), (pair()[0], pair(32, 80)[0])])


def test_fast_precision_stays_close_to_exact(matcher, network, monkeypatch):
    # On any processor: slow on some, but the same arithmetic.
    monkeypatch.setattr("ea_psmnet.inference.matcher.has_fast_bfloat16", lambda _: True)
    fast = StereoMatcher(network, device="cpu", precision="fast")
    left, right = pair()
    exact = matcher(left, right).disparity
    difference = np.abs(fast(left, right).disparity - exact)
    assert exact.std() > 0.1
    assert 0 < difference.mean() < 0.05 * exact.std()


def test_a_real_pair_is_matched_as_by_the_published_form(shared_data, monkeypatch):
    monkeypatch.setattr("ea_psmnet.inference.matcher.has_fast_bfloat16", lambda _: True)
    folder = shared_data / "stereo" / "eth3d_playground"
    images = [read_image(folder / f"{side}.png")[200:328, :256] for side in ("left", "right")]
    network = load_model(DEFAULT, max_disparity=64)
    inputs = [torch.from_numpy(i.copy()).permute(2, 0, 1)[None].float() / 255 for i in images]
    with torch.inference_mode():
        plain = PlainPSMNet(network)(*inputs)[0][0].numpy()
    difference = {
        precision: np.abs(StereoMatcher(network, precision=precision)(*images).disparity - plain)
        for precision in ("exact", "fast")
    }
    assert difference["exact"].max() < 0.005
    assert 0 < difference["fast"].mean() < 0.05


def test_load_reads_a_checkpoint_and_another_range(tmp_path):
    save_model(tmp_path / "model.safetensors", build_model(CONFIG))
    matcher = StereoMatcher.load(tmp_path / "model.safetensors", max_disparity=48)
    assert matcher.max_disparity == 48
    assert not matcher.model.training


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (pair()[0], pair(32, 80)[0], "left 64 x 32, right 80 x 32"),
        (pair()[0] / 255, pair()[1], r"left image is an array \(32, 64, 3\) of float64: expected"),
        (pair()[0], pair()[1][..., :2], r"right image is an array \(32, 64, 2\) of uint8"),
        (pair()[0][:0], pair()[1][:0], r"left image is empty: an array \(0, 64, 3\)"),
        (np.zeros(0, np.uint8), pair()[1], r"left image is an array \(0,\) of uint8: expected"),
    ],
)
def test_what_is_no_pair_is_refused(matcher, left, right, message):
    with pytest.raises(ValueError, match=message):
        matcher(left, right)


@pytest.mark.parametrize(
    ("thing", "message"),
    [(None, "left image is None"), ([[1, 2]], "left image is of type list"), (7, "is of type int")],
)
def test_what_is_no_image_is_refused(matcher, thing, message):
    with pytest.raises(TypeError, match=f"{message}: expected an array"):
        matcher(thing, pair()[1])


def test_what_is_not_two_images_is_refused(matcher):
    for thing in (pair()[:1], None, pair()[0]):
        with pytest.raises(TypeError, match="a pair is a tuple of left and right image"):
            matcher.match([thing])


def forms(image, folder):
    """One grey picture in every form that is taken."""
    grey = image[..., 0]
    yield np.repeat(grey[..., None], 3, axis=2)
    yield grey
    yield grey[..., None]
    yield np.dstack([np.repeat(grey[..., None], 3, axis=2), image[..., 1]])
    yield grey.astype(np.uint16) * 257
    yield Image.fromarray(grey)
    yield Image.fromarray(grey).convert("RGBA")
    yield Image.fromarray(grey.astype(np.uint16) * 257)
    yield (grey.astype(np.uint16) * 257).astype(">u2")
    yield Image.fromarray(grey.astype(np.int32) * 257)
    turned = Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees to the right
    yield turned
    Image.fromarray(grey).save(folder / "grey.png")
    yield folder / "grey.png"
    yield str(folder / "grey.png")


def test_a_picture_may_come_in_any_form(matcher, tmp_path):
    left, right = pair()
    first, *others = forms(left, tmp_path)
    expected = matcher(first, right).disparity
    for image in others:
        np.testing.assert_array_equal(matcher(image, right).disparity, expected)


def test_twelve_bits_in_sixteen_are_told(matcher):
    left, right = pair()
    with pytest.warns(UserWarning, match="the right image: 16-bit image of values up to 4080"):
        matcher(left, right.astype(np.uint16) * 16)


@pytest.mark.parametrize("width", [8, 16])
def test_images_narrower_than_the_range_are_searched_whole(matcher, network, width):
    reach = -(-width // 16) * 16
    views = pair(32, width)
    message = f"{width} px wide: disparities up to {reach} are searched"
    with pytest.warns(UserWarning, match=message):
        found, wide = matcher.match([views, pair()])
    assert matcher.max_disparity == 32
    narrower = build_model(replace(CONFIG, max_disparity=reach))
    narrower.load_state_dict(network.state_dict())
    expected = StereoMatcher(narrower, device="cpu", precision="exact")(*views).disparity
    np.testing.assert_array_equal(found.disparity, expected)
    np.testing.assert_array_equal(wide.disparity, matcher(*pair()).disparity)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "unknown device 'gpu': choose auto, cpu, cuda or cuda:N"),
        ({"device": "mps"}, ValueError, "unknown device 'mps'"),
        ({"device": "cuda:99"}, ValueError, "'cuda:99' was asked for, but torch sees"),
        ({"device": None}, ValueError, "unknown device 'None'"),
        ({"precision": "EXACT"}, ValueError, "unknown precision 'EXACT': choose from auto, exact"),
        ({"precision": "fp16"}, ValueError, "unknown precision 'fp16'"),
        ({"memory": "a lot"}, ValueError, "'a lot' is not a size in bytes: write it as 11GiB"),
        ({"memory": "9" * 400 + "GiB"}, ValueError, "is too large"),
        ({"memory": 0}, ValueError, "memory is 0: give bytes, or text as 8GiB"),
        ({"memory": 8e9}, TypeError, "memory is a float: give bytes, or text as 8GiB"),
        ({"memory": True}, TypeError, "memory is a bool"),
    ],
)
def test_impossible_settings_are_refused(network, settings, error, message):
    with pytest.raises(error, match=message):
        StereoMatcher(network, **settings)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match=r"a str is not a PSMNet: StereoMatcher\.load reads one"):
        StereoMatcher("ea-psmnet-small")


def test_switches_are_true_or_false():
    for switch in ({"attention": "no"}, {"attention": None}, {"align_corners": "yes"}):
        with pytest.raises(TypeError, match="give True or False"):
            StereoMatcher.load(**switch)


def test_memory_and_device_as_people_write_them(network):
    rooms = [StereoMatcher(network, device="cpu", memory=m)._room for m in ("8GiB", 2**33)]
    assert rooms[0] == pytest.approx(rooms[1], abs=2**28)
    assert StereoMatcher(network, device=torch.device("cpu")).device.type == "cpu"


def test_a_calibration_follows_the_size_of_the_images(matcher):
    whole = Calibration(f=500, cx=319.5, cy=159.5, baseline=0.2, doffs=10, width=640, height=320)
    result = matcher(*pair(32, 64), calibration=whole)
    assert result.calibration == Calibration(50, 31.5, 15.5, 0.2, 1, 64, 32)
    np.testing.assert_allclose(result.depth, 50 * 0.2 / (result.disparity + 1), rtol=1e-5)
    with pytest.raises(ValueError, match="depth needs a calibration"):
        _ = matcher(*pair(32, 64)).depth


@pytest.mark.parametrize("scale", [0.5, 1, 1.5])
def test_a_pair_at_another_size_has_its_own_disparity(scale):
    seen = []

    def predict(left, right):
        seen.append(left.shape)
        disparity = np.full(left.shape[:2], 12 * left.shape[1] / 100, np.float32)
        calibration = Calibration(f=left.shape[1], cx=5, cy=5, baseline=0.1)
        return StereoResult(
            disparity, left, disparity / 100, disparity, calibration.scaled_to(*left.shape[:2])
        )

    views = pair(40, 100)
    result = predicted_at_scale(predict, views, scale)
    found = result.disparity
    assert seen == [(40 * scale, 100 * scale, 3)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.full((40, 100), 12), rtol=1e-6)
    np.testing.assert_allclose(result.right, found, rtol=1e-6)
    # Errors are as many times larger as pixels: of a Laplacian, 1 - (1 - c)^scale.
    expected = 1 - (1 - found / 100 * scale) ** scale
    np.testing.assert_allclose(result.confidence, expected, rtol=1e-5)
    np.testing.assert_allclose(result.depth, np.full((40, 100), 100 * 0.1 / 12), rtol=1e-6)
    assert result.image is views[0]


def test_an_impossible_scale_is_refused():
    for scale in (0, -1, 9, float("nan")):
        with pytest.raises(ValueError, match="expected above 0 and at most 8"):
            predicted_at_scale(None, pair(), scale)


def test_exact_switches_tf32_off_while_it_computes_and_only_then(matcher):
    before, seen = torch.backends.cudnn.allow_tf32, []
    hook = matcher.model.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    matcher(*pair())
    hook.remove()
    assert (seen, torch.backends.cudnn.allow_tf32) == ([False], before)


def test_networks_that_are_not_finite_or_overflow_are_refused():
    network = build_model(CONFIG)
    with torch.no_grad():
        for layer in (network.features.fuse[2], network.aggregation.classifiers[2][2]):
            layer.weight.mul_(1e30)
    with pytest.raises(NotFiniteError, match="computes NaN or infinity: its weights are damaged"):
        StereoMatcher(network, precision="exact")(*pair())
    network.features.fuse[2].weight.data[0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"network: has NaN or infinity in 'features.fuse"):
        StereoMatcher(network)

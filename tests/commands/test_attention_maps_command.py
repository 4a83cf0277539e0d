"""`attention-maps` as a user runs it."""

import numpy as np
import pytest
import torch
from made_pairs import write_noise_pair

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.__main__ import main
from ea_psmnet.experiments.attention_maps import attention_maps
from ea_psmnet.files import read_image
from ea_psmnet.models.weights import save_model

SIZE = (40, 72)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tiny network of each kind, by its mechanism."""
    folder = tmp_path_factory.mktemp("weights")
    for mechanism in ("none", "efficient", "dot_product", "hydra"):
        torch.manual_seed(0)
        sites = () if mechanism == "none" else ("hourglass1.encoder", "hourglass2.bottleneck")
        options = {"key_channels": 2} if mechanism == "efficient" else {}
        config = PSMNetConfig(
            max_disparity=32,
            width=0.25,
            attention=mechanism,
            attention_sites=sites,
            attention_options=options,
        )
        save_model(folder / f"{mechanism}.safetensors", build_model(config))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_noise_pair(tmp_path_factory.mktemp("pair"), np.random.default_rng(0), SIZE, 8)


def run(pair, checkpoint, out, *arguments):
    images = (pair / "left.png", pair / "right.png")
    options = ("--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--precision", "exact")
    return main([str(a) for a in ("attention-maps", *images, *options, *arguments)])


@pytest.mark.slow
def test_a_pair_narrower_than_the_range_has_maps_too(checkpoints, pair, tmp_path, capsys):
    site = ("--site", "hourglass1.encoder", "--max-disparity", 192)
    with pytest.warns(UserWarning, match="72 px wide: disparities up to 80 are searched"):
        assert run(pair, checkpoints / "efficient.safetensors", tmp_path / "out", *site) == 0
    assert np.load(tmp_path / "out" / "maps.npz")["maps"].shape == (2, 80 // 8, 6, 10)


def test_efficient_maps_are_written(checkpoints, pair, tmp_path, capsys):
    checkpoint = checkpoints / "efficient.safetensors"
    assert run(pair, checkpoint, tmp_path / "out", "--site", "hourglass1.encoder") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sheet.png", "maps.npz", "map_00.png", "map_01.png"}
    *printed, added = capsys.readouterr().out.splitlines()
    assert added.startswith("hourglass1.encoder adds ")
    assert sorted(printed) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    matcher = StereoMatcher.load(checkpoint, device="cpu", precision="exact")
    images = (read_image(pair / f"{view}.png") for view in ("left", "right"))
    expected = attention_maps(matcher, *images, "hourglass1.encoder").maps
    np.testing.assert_allclose(np.load(tmp_path / "out" / "maps.npz")["maps"], expected, rtol=1e-4)


def test_dot_product_map_of_a_pixel(checkpoints, pair, tmp_path):
    arguments = ("--site", "hourglass2.bottleneck", "--pixel", 70, 3)
    assert run(pair, checkpoints / "dot_product.safetensors", tmp_path / "out", *arguments) == 0
    with np.load(tmp_path / "out" / "maps.npz") as numbers:
        assert numbers["maps"].shape == (1, 2, 3, 5)
        assert numbers["maps"].sum() == pytest.approx(1, rel=1e-5)
        assert tuple(numbers["pixel"]) == (70, 3)


@pytest.mark.parametrize(
    ("mechanism", "site", "pixel", "message"),
    [
        ("none", "volume", (), "no attention"),
        ("efficient", "volume", (), "hourglass1.encoder, hourglass2.bottleneck"),
        ("efficient", "hourglass1.encoder", ("--pixel", 1, 1), "same for all pixels"),
        ("efficient", "hourglass1.encoder", ("--no-attention",), "leaves no maps to draw"),
        ("dot_product", "hourglass1.encoder", (), "name one"),
        ("dot_product", "hourglass1.encoder", ("--pixel", 72, 0), "(72, 0) lies outside"),
        ("hydra", "hourglass1.encoder", (), "efficient and dot_product have"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    checkpoints, pair, tmp_path, capsys, mechanism, site, pixel, message
):
    checkpoint = checkpoints / f"{mechanism}.safetensors"
    assert run(pair, checkpoint, tmp_path / "out", "--site", site, *pixel) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()

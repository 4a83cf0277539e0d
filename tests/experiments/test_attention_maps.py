"""Attention maps: the weights the modules really use, at the right place of the left image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.attention import DotProductAttention, EfficientAttention
from ea_psmnet.experiments.attention_maps import (
    AttentionMaps,
    _added,
    attention_maps,
    attention_sites,
    map_picture,
    map_sheet,
    write_maps,
)
from ea_psmnet.files import read_image

SIZE = (30, 60)  # padded to 32 x 64: two rows above, four columns to the right


def trained(module):
    """As if trained: no parameter at its starting value."""
    generator = torch.Generator().manual_seed(4)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return module.double().eval()


def volume(*size, channels=8):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


def pair(size=SIZE):
    wide = np.random.default_rng(0).integers(0, 256, (size[0], size[1] + 6, 3), dtype=np.uint8)
    return wide[:, : size[1]].copy(), wide[:, 6:].copy()


def matcher(attention="efficient", sites=("hourglass2.encoder",), **options):
    torch.manual_seed(0)
    config = PSMNetConfig(
        max_disparity=32,
        width=0.25,
        attention=attention,
        attention_sites=sites,
        attention_options=options,
    )
    return StereoMatcher(build_model(config), device="cpu", precision="exact")


def feed(module, value):
    """Let a module be given another volume than the network's: hooks run in this order."""
    module.register_forward_pre_hook(lambda _, given: (value.expand_as(given[0]),))


# The modules' own weights --------------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_global_maps_are_shares_of_one(normalisation):
    module = trained(EfficientAttention(8, key_channels=6, heads=2, normalisation=normalisation))
    maps = module.global_maps(volume(3, 4, 5))
    assert maps.shape == (2, 6, 3, 4, 5)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=(2, 3, 4)), torch.ones(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("heads", [1, 2])
def test_global_maps_gather_what_the_block_adds(heads):
    """x + W_o (softmax(Q)^T (maps V)) is the module's output, computed there without V or maps."""
    x = volume(3, 4, 5)
    module = trained(EfficientAttention(8, key_channels=4, value_channels=6, heads=heads))
    maps = module.global_maps(x).flatten(2).unflatten(1, (heads, -1))  # (B, h, k, n)
    values = module.values(x).flatten(2).unflatten(1, (heads, -1))  # (B, h, v, n)
    queries = module.queries(x).flatten(2).unflatten(1, (heads, -1)).softmax(dim=2)
    context = torch.einsum("bhkn,bhvn->bhkv", maps, values)
    gathered = torch.einsum("bhkv,bhkn->bhvn", context, queries)
    expected = x + module.projection(gathered.flatten(1, 2).unflatten(2, x.shape[2:]))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_signed_keys_are_drawn_by_their_sizes():
    x = volume(3, 4, 5)
    module = trained(EfficientAttention(8, normalisation="scaling"))
    sizes = module.keys(x).abs()
    expected = sizes / sizes.sum(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(module.global_maps(x), expected)
    for parameter in module.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(module.global_maps(x), torch.full_like(expected, 1 / 60))


def test_global_maps_of_half_precision_weights_are_computed_in_float32():
    """As the block computes them: rounded logits would be off by parts of themselves."""
    x = volume(3, 4, 5).bfloat16()
    module = trained(EfficientAttention(8)).bfloat16()
    maps = module.global_maps(x)
    torch.testing.assert_close(maps, module.float().global_maps(x.float()), rtol=1e-5, atol=1e-8)


def test_a_positions_map_in_half_precision_sums_in_float32():
    """As the module does, whose convolutions alone round."""
    x = volume(3, 4, 5).bfloat16()
    module = trained(DotProductAttention(8)).bfloat16()
    queries, keys = (layer(x).float().flatten(2) for layer in (module.queries, module.keys))
    row = torch.einsum("bk,bkn->bn", queries[..., 7], keys).softmax(dim=1)
    actual = module.map_of(x, (0, 1, 2)).flatten(1)
    torch.testing.assert_close(actual, row, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale_logits", [False, True])
def test_a_positions_map_is_its_row_of_the_full_matrix(scale_logits):
    x = volume(3, 4, 5)
    module = trained(DotProductAttention(8, scale_logits=scale_logits))
    queries, keys = module.queries(x).flatten(2), module.keys(x).flatten(2)
    logits = queries.transpose(1, 2) @ keys * (0.5 if scale_logits else 1)  # (B, n, n), k = 4
    rows = logits.softmax(dim=2)
    for position in ((0, 0, 0), (1, 2, 3), (2, 3, 4)):
        row = rows[:, np.ravel_multi_index(position, (3, 4, 5))]
        torch.testing.assert_close(module.map_of(x, position).flatten(1), row)


@pytest.mark.parametrize("normalisation", ["scaling", "none"])
def test_a_signed_row_is_drawn_by_its_sizes(normalisation):
    x = volume(3, 4, 5)
    module = trained(DotProductAttention(8, normalisation=normalisation))
    sizes = torch.einsum("bk,bkdhw->bdhw", module.queries(x)[..., 1, 2, 3], module.keys(x)).abs()
    expected = sizes / sizes.sum(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(module.map_of(x, (1, 2, 3)), expected)


@pytest.mark.parametrize("pool", ["projected", "input"])
@pytest.mark.parametrize("size", [(2, 4, 6), (2, 5, 7), (2, 1, 3)])
def test_pooled_keys_spread_over_their_windows(pool, size):
    x = volume(*size)
    module = trained(DotProductAttention(8, pool=pool))
    spread = module.map_of(x, (1, 0, 2))
    assert spread.shape == (2, *size)
    torch.testing.assert_close(spread.sum(dim=(1, 2, 3)), torch.ones(2, dtype=torch.float64))
    high, wide = min(2, size[1]), 2
    rows, columns = size[1] // high * high, size[2] // wide * wide
    assert (spread[:, :, rows:] == 0).all()
    assert (spread[..., columns:] == 0).all()
    windows = spread[:, :, :rows, :columns].unflatten(3, (-1, wide)).unflatten(2, (-1, high))
    keys, _ = module._keys_and_values(x)
    logits = torch.einsum("bk,bkdhw->bdhw", module.queries(x)[..., 1, 0, 2], keys)
    row = logits.flatten(1).softmax(dim=1).view_as(logits)
    torch.testing.assert_close(windows.sum(dim=(3, 5)), row)
    torch.testing.assert_close(windows[:, :, :, 0, :, 0], windows[:, :, :, -1, :, -1])


# Where they lie in the image -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "stride"),
    [("volume", 4), ("hourglass1.output", 4), ("hourglass3.decoder", 8), ("encoder", 8),
     ("hourglass2.bottleneck", 16)],
)  # fmt: skip
def test_a_hot_position_lands_on_its_pixels(site, stride):
    """Position (d, y, x) of the padded volume is disparity d * stride, y rows below the padding."""
    model = matcher(sites=(site,))
    site, module = next(iter(attention_sites(model.model).items()))
    d, y, x = 1, 32 // stride - 1, 1
    hot = torch.zeros(1, 1, 32 // stride, 32 // stride, 64 // stride)
    hot[..., d, y, x] = 50
    feed(module, hot)
    module.keys.weight.data.fill_(1)
    maps = attention_maps(model, *pair(), site)

    assert (maps.site, maps.stride, maps.padding) == (site, stride, (2, 4))
    assert maps.maps.shape == (module.keys.out_channels, *hot.shape[2:])
    assert maps.maps.dtype == np.float32
    np.testing.assert_allclose(maps.maps.sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    lit = maps.over_image(maps.maximum(0)) > 0.5
    assert lit.shape == SIZE
    expected = np.zeros(SIZE, bool)
    expected[y * stride - 2 : (y + 1) * stride - 2, x * stride : (x + 1) * stride] = True
    np.testing.assert_array_equal(lit, expected)
    assert (maps.over_image(maps.peak(0))[expected] == d * stride).all()
    np.testing.assert_allclose(maps.mean(0) * hot.shape[2], maps.maps[0].sum(axis=0), rtol=1e-6)
    smooth = maps.over_image(maps.maximum(0), smooth=True)
    rows, columns = np.nonzero(smooth == smooth.max())
    assert expected[rows, columns].all()


def test_a_position_in_the_padding_is_not_drawn():
    model = matcher(sites=("volume",))
    module = model.model.aggregation.attention
    hot = torch.zeros(1, 1, 8, 8, 16)
    hot[..., 2, 4, 15] = 50
    feed(module, hot)
    module.keys.weight.data.fill_(1)
    maps = attention_maps(model, *pair(), "volume")
    assert maps.over_image(maps.maximum(0)).max() < 1e-6


@pytest.mark.parametrize("pixel", [(0, 0), (59, 29), (31, 6), (8, 14)])
def test_a_pixel_that_attends_to_itself_is_found_there(pixel):
    """Equal query and key directions of unit length: a position's best match is itself."""
    model = matcher("dot_product", ("hourglass1.output",), key_channels=8)
    module = model.model.aggregation.hourglasses[0].attention["output"]
    directions = torch.randn(1, 8, 8, 8, 16, generator=torch.Generator().manual_seed(1))
    feed(module, torch.nn.functional.normalize(directions, dim=1))
    for layer in (module.queries, module.keys):
        layer.weight.data = 20 * torch.eye(8).view(8, 8, 1, 1, 1)
        layer.bias.data.zero_()
    maps = attention_maps(model, *pair(), "hourglass1.output", pixel)

    assert maps.pixel == pixel
    assert maps.maps.shape == (1, 8, 8, 16)
    assert maps.maps.sum() == pytest.approx(1, rel=1e-5)
    x, y = pixel
    heights = maps.over_image(maps.maximum(0))
    assert heights[y, x] == heights.max() > 0.3
    rows, columns = np.nonzero(heights == heights.max())
    assert rows.max() - rows.min() < 4
    assert columns.max() - columns.min() < 4
    peak = maps.over_image(maps.peak(0))[y, x]
    assert abs(peak - np.clip(maps.disparity[y, x], 0, 28)) <= 2


def test_maps_are_those_of_the_volume_the_network_makes():
    model = matcher(start="published")
    given, made = [], []
    module = attention_sites(model.model)["hourglass2.encoder"]
    module.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    module.register_forward_hook(lambda *call: made.append(call[2].clone()))
    left, right = pair()
    maps = attention_maps(model, left, right, "hourglass2.encoder")
    with torch.no_grad():
        expected = module.keys(given[0]).flatten(2).softmax(dim=2)[0]
    np.testing.assert_allclose(maps.maps.reshape(expected.shape), expected, rtol=1e-4)
    np.testing.assert_array_equal(maps.disparity, model(left, right).disparity)
    branch = made[0] - given[0]
    assert maps.added == pytest.approx((branch.norm() / given[0].norm()).item(), rel=1e-4)
    alike = branch.mean(dim=(2, 3, 4), keepdim=True).expand_as(branch)
    share = (alike.norm() / branch.norm()).item() ** 2
    assert 0 < share < 1
    assert maps.constant == pytest.approx(share, rel=1e-4)
    assert len(module._forward_hooks) == 1, "the hook that watches stays behind"


def test_a_module_that_adds_nothing_has_no_constant_part():
    given = torch.rand(1, 4, 2, 3, 5)
    assert _added(given, given) == (0, 0)
    assert _added(given, 3 * given)[0] == pytest.approx(2)
    assert _added(given, given + 1)[1] == pytest.approx(1)


def test_sites_are_those_of_the_configuration():
    sites = ("hourglass1.encoder", "hourglass3.output", "volume")
    model = matcher(sites=sites).model
    found = attention_sites(model)
    assert list(found) == list(model.config.attention_sites)
    assert found["volume"] is model.aggregation.attention
    assert found["hourglass3.output"] is model.aggregation.hourglasses[2].attention["output"]
    assert all(isinstance(module, EfficientAttention) for module in found.values())
    basic = PSMNetConfig("basic", 32, 0.25, attention="efficient", attention_sites=("volume",))
    assert list(attention_sites(build_model(basic))) == ["volume"]


@pytest.mark.parametrize(
    ("mechanism", "site", "pixel", "message"),
    [
        ("none", "volume", None, "no attention"),
        ("efficient", "volume", None, "it at hourglass1.encoder, hourglass2.encoder"),
        ("efficient", "hourglass1.encoder", (0, 0), "same for all pixels"),
        ("dot_product", "hourglass1.encoder", None, "name one"),
        ("dot_product", "hourglass1.encoder", (60, 0), "x goes from 0 to 59, y from 0 to 29"),
        ("dot_product", "hourglass1.encoder", (0, -1), "outside the image"),
        ("external", "hourglass1.encoder", None, "efficient and dot_product have"),
        ("hydra", "hourglass1.encoder", None, "efficient and dot_product have"),
        ("focused_linear", "hourglass1.encoder", None, "efficient and dot_product have"),
    ],
)
def test_what_cannot_be_drawn_is_told(mechanism, site, pixel, message):
    model = matcher(mechanism, () if mechanism == "none" else ("encoder",))
    with pytest.raises(ValueError, match=message) as error:
        attention_maps(model, *pair(), site, pixel)
    assert "\n" not in str(error.value)


# Pictures and files --------------------------------------------------------------------------


def some_maps(count, size=SIZE, **changes):
    rng = np.random.default_rng(1)
    shares = rng.random((count, 4, -(-size[0] // 8), -(-size[1] // 8)), np.float32) ** 4
    values = {
        "site": "hourglass1.encoder",
        "mechanism": "efficient",
        "normalisation": "softmax",
        "maps": shares / shares.sum(axis=(1, 2, 3), keepdims=True),
        "stride": 8,
        "left": pair(size)[0],
        "disparity": np.full(size, 9, np.float32),
        "added": 0.25,
        "constant": 0.75,
    }
    return AttentionMaps(**values | changes)


def test_height_and_extent_tell_how_sharp_a_map_is():
    sharp = np.zeros((2, 4, 4, 8), np.float32)
    sharp[0, 1, 2, 3] = 1
    sharp[1] = 1 / 128
    maps = some_maps(2, maps=sharp)
    assert (maps.height(0), maps.height(1)) == (128, 1)
    assert maps.extent(0) == pytest.approx(1 / 128)
    assert maps.extent(1) == pytest.approx(1)


def changed_box(before, after):
    """Rows and columns, first to last, in which two pictures differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(2, SIZE), (7, (30, 200)), (17, (90, 40))])
def test_every_map_has_a_place_of_its_own_in_the_sheet(count, size):
    maps = some_maps(count, size)
    picture = map_sheet(maps)
    assert picture.dtype == np.uint8
    assert 0.3 < picture.shape[0] / picture.shape[1] < 3
    boxes = []
    for index in (0, count - 1):
        other = maps.maps.copy()
        other[index] = other[index, ::-1, ::-1, ::-1]
        boxes.append(changed_box(picture, map_sheet(some_maps(count, size, maps=other))))
    (_, bottom, _, right), (top, last_row, left, last_column) = boxes
    assert top > bottom or left > right
    assert last_row < picture.shape[0] - 8
    assert max(right, last_column) < picture.shape[1] - 8


def test_heat_is_drawn_where_the_map_is_hot():
    hot = np.full((1, 4, 4, 8), 1e-6, np.float32)
    hot[0, 2, 3, 7] = 1  # rows 22 to 29 of 30, columns 56 to 59 of 60 in the image
    grey = np.full((*SIZE, 3), 90, np.uint8)
    maps = some_maps(1, maps=hot, left=grey)
    cold = some_maps(1, maps=np.full_like(hot, 1 / 128), left=grey)
    heat, flat = (map_picture(m, 0)[424:664, 24:504].astype(int) for m in (maps, cold))
    rows, columns = np.nonzero(np.abs(heat - flat).sum(axis=2) > 200)
    assert columns.min() > 480 * 50 / 60
    assert columns.max() == 479
    assert rows.min() > 240 * 18 / 30
    assert rows.max() == 239


def test_equal_attention_has_equal_colours_in_all_maps():
    sharp = np.full((2, 4, 4, 8), 1.0, np.float32)
    sharp[0, 2, :2] = 50
    sharp[1, 2, :2] = 1.5
    maps = some_maps(2, maps=sharp / sharp.sum(axis=(1, 2, 3), keepdims=True))
    left = np.full((*SIZE, 3), 90, np.uint8)
    strong, weak = (map_picture(replace(maps, left=left), index) for index in (0, 1))
    place = slice(424, 424 + 60), slice(100, 400)  # the upper half of the first picture
    assert strong[place].astype(int).sum() > 1.5 * weak[place].sum()


def test_the_cross_marks_the_pixel():
    plain, marked = (map_picture(some_maps(1, pixel=p), 0) for p in (None, (40, 10)))
    for top in (104, 424):  # the left image, and the first picture of the map
        change = (plain != marked).any(axis=2)[top : top + 240, 24:504]
        rows, columns = np.nonzero(change)
        assert abs(rows.mean() - 10.5 / 30 * 240) < 2
        assert abs(columns.mean() - 40.5 / 60 * 480) < 2
        assert len(rows) < 500


@pytest.mark.parametrize("pixel", [None, (7, 3)])
def test_files_hold_the_maps_and_their_place(tmp_path, pixel):
    maps = some_maps(3, pixel=pixel)
    paths = write_maps(tmp_path / "out", maps)
    names = ["sheet.png", "maps.npz", "map_00.png", "map_01.png", "map_02.png"]
    assert [path.name for path in paths] == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    np.testing.assert_array_equal(read_image(paths[0]), map_sheet(maps))
    np.testing.assert_array_equal(read_image(paths[3]), map_picture(maps, 1))
    with np.load(paths[1], allow_pickle=False) as numbers:
        np.testing.assert_array_equal(numbers["maps"], maps.maps)
        assert numbers["maps"].dtype == np.float32
        assert (numbers["stride"], str(numbers["site"])) == (8, "hourglass1.encoder")
        assert tuple(numbers["padding_top_right"]) == (2, 4)
        assert tuple(numbers["image_height_width"]) == SIZE
        assert tuple(numbers["pixel"]) == (pixel or ())
        assert (numbers["added"], numbers["constant"]) == (0.25, 0.75)


def test_pictures_of_an_earlier_run_are_removed_and_nothing_else(tmp_path):
    write_maps(tmp_path, some_maps(3))
    kept = ["map.png", "map_1.png", "map_02.jpg", "my_map_02.png", "map_02.png.bak"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / "map_77.png").mkdir()
    paths = write_maps(tmp_path, some_maps(1))
    expected = {*(path.name for path in paths), *kept, "map_77.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_failed_run_leaves_the_earlier_one(tmp_path):
    write_maps(tmp_path, some_maps(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="empty sequence"):
        write_maps(tmp_path, some_maps(1, maps=np.empty((1, 0, 4, 8), np.float32)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_all_files_or_none(tmp_path):
    (tmp_path / "map_01.png").mkdir()
    with pytest.raises(OSError, match=r"map_01\.png"):
        write_maps(tmp_path, some_maps(2))
    assert [path.name for path in tmp_path.iterdir()] == ["map_01.png"]

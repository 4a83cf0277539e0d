import numpy as np
import pytest
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ea_psmnet.figures import Bar, GridStyle, Row, dress, fitted, new_figure, panel_grid, to_image

STYLE = GridStyle(width=60, gap=10, row_gap=8, line=20, size=8, title=30, title_size=10)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_lie_pixel_for_pixel_below_their_texts():
    first, second, third = noise(40, 60), noise(40, 50, 1), noise(30, 60, 2)
    rows = [
        Row((first, second), headings=("both",), captions=("left", "right")),
        Row((third,), captions=("$alone_",)),
    ]
    picture = panel_grid(rows, STYLE, title="title", columns=("a", "b"))
    assert picture.shape == (30 + 20 + (40 + 40 + 8) + (20 + 30 + 8), 10 + 2 * 70, 3)
    y = 30 + 20 + 40
    np.testing.assert_array_equal(picture[y : y + 40, 10:70], first)
    np.testing.assert_array_equal(picture[y : y + 40, 80:130], second)
    y += 40 + 8 + 20
    np.testing.assert_array_equal(picture[y : y + 30, 10:70], third)
    assert (picture[:30, :60] < 100).any(), "a title"
    assert (picture[30:50, 80:] < 200).any(), "the second column's name"


@pytest.mark.parametrize(
    ("shape", "size"), [((20, 40), (30, 60)), ((80, 20), (50, 12)), ((1, 900), (1, 60))]
)
def test_an_image_is_fitted_and_keeps_its_shape(shape, size):
    assert fitted(noise(*shape), 60, 50).shape == (*size, 3)


def test_a_plot_is_an_image_of_its_size():
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    dress(axes, title="title", x="x", y="y", grid="y")
    picture = to_image(figure)
    assert picture.shape == (200, 300, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 0


def test_a_bar_beside_a_row_lies_to_its_right():
    bar = Bar("px", ScalarMappable(Normalize(0, 9), "viridis"), extend="max", ends=("far", "near"))
    image = noise(60, 60)
    plain, with_bar = (panel_grid([Row((image,), bar=b)], STYLE) for b in (None, bar))
    np.testing.assert_array_equal(with_bar[: plain.shape[0], : plain.shape[1]][:60, 10:70], image)
    strip = with_bar[:60, plain.shape[1] :].astype(int)
    colourful = np.ptp(strip, axis=2).max(axis=1) > 60
    assert colourful.mean() > 0.9, "colours over the height of the image"
    assert strip[5].sum() > strip[55].sum(), "the last colour is above"


def test_a_title_that_is_too_long_is_written_smaller():
    picture = panel_grid([Row((noise(40, 60),))], STYLE, title="a name of a file " * 2)
    assert (picture[:30, -3:] == 255).all()
    assert (picture[:30] < 200).any()

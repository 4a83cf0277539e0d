import numpy as np
import pytest
from made_pairs import made_pair

from ea_psmnet.evaluation import pictures as evaluation_pictures
from ea_psmnet.evaluation.evaluation import Evaluation
from ea_psmnet.evaluation.pictures import Pictures, sheet_row, worst_sheet
from ea_psmnet.evaluation.shares import ImageErrors
from ea_psmnet.files import read_image
from ea_psmnet.inference.outputs import error_map
from ea_psmnet.metrics import DisparityErrors

NAMES = [f"p/{index}" for index in range(20)]


def made(errors):
    """Pairs 0, 1, ... of 4 x 8 pixels, their predictions and errors; None: nothing known."""
    for index, error in enumerate(errors):
        sample = made_pair(
            np.full((4, 8), 10.0), f"p/{index}", valid=np.full((4, 8), error is not None)
        )
        disparity = np.full((4, 8), 10 + (error or 0), np.float32)
        yield sample, disparity, DisparityErrors.measure(disparity, sample.disparity, sample.valid)


def show(pictures, errors, label="ours", places=None):
    """Those at `places`, or all."""
    for index, (sample, disparity, measured) in enumerate(made(errors)):
        if places is None or index in places:
            pictures(label, index, sample, disparity, measured)


def evaluation(errors, label="ours"):
    images = tuple(ImageErrors(s.name, measured, 1.0) for s, _, measured in made(errors))
    return Evaluation(label, 192, images, {}, {})


def never(label, index):
    raise AssertionError(f"{label} predicted pair {index} again")


def drawn(monkeypatch):
    """Captions of the rows of every sheet of the worst, as they are drawn."""
    sheets = []

    def draw(title, rows):
        sheets.append((title, [row.headings[0].split(":")[0] for row in rows]))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(evaluation_pictures, "worst_sheet", draw)
    return sheets


def test_the_ten_worst_are_drawn_worst_first(tmp_path, monkeypatch):
    sheets = drawn(monkeypatch)
    pictures = Pictures(tmp_path, ["ours"], NAMES, worst=True)
    errors = [1, 9, None, 3, np.nan, 5, 9, 2, 2, 2, 2, 0.5, 4]
    show(pictures, errors)
    written = pictures.finish([evaluation(errors)], never)
    order = [4, 1, 6, 5, 12, 3, 7, 8, 9, 10]  # what has no prediction at all is worst
    assert sheets == [("ours: the 10 pairs with the highest EPE", [f"p/{i}" for i in order])]
    assert written == {"ours: the 10 pairs with the highest EPE": "worst/ours.png"}
    assert (tmp_path / "worst" / "ours.png").is_file()


def test_processes_put_their_worst_together(tmp_path, monkeypatch):
    sheets = drawn(monkeypatch)
    parts = [Pictures(tmp_path, ["ours"], NAMES, worst=True) for _ in range(2)]
    errors = [1, 3, 7]
    show(parts[0], errors, places=(0, 2))
    show(parts[1], errors, places=(1,))
    theirs = parts[1]._worst
    monkeypatch.setattr(evaluation_pictures, "gather", lambda mine: [*mine, {}, theirs])
    parts[0].finish([evaluation(errors)], never)
    assert sheets[0][1] == ["p/2", "p/1", "p/0"]


def test_a_pair_measured_before_a_stop_is_predicted_again_for_its_row(tmp_path, monkeypatch):
    sheets, errors, asked = drawn(monkeypatch), [5, 1, 7], []
    pictures = Pictures(tmp_path, ["ours"], NAMES, worst=True)
    show(pictures, errors, places=(1, 2))

    def predict(label, index):
        asked.append((label, index))
        return list(made(errors))[index][:2]

    pictures.finish([evaluation(errors)], predict)
    assert sheets[0][1] == ["p/2", "p/0", "p/1"]
    assert asked == [("ours", 0)]


def test_error_maps_are_the_errors(tmp_path):
    pictures = Pictures(tmp_path, ["a (b) c"], NAMES, error_maps=True)
    show(pictures, [0.3, None], label="a (b) c")
    maps = [read_image(tmp_path / "error_maps" / "a_b_c" / f"p_{i}.png") for i in (0, 1)]
    truth = np.full((4, 8), 10.0)
    np.testing.assert_array_equal(maps[0], error_map(truth + 0.3, truth, truth > 0))
    assert not maps[1].any()


def test_nothing_is_drawn_unasked(tmp_path):
    pictures = Pictures(tmp_path, ["ours"], NAMES)
    show(pictures, [1])
    assert pictures.finish([evaluation([1])], never) == {}
    assert list(tmp_path.iterdir()) == []


def test_pairs_and_methods_of_like_names_have_files_of_their_own(tmp_path):
    names = ["a/b", "a_b", "A_b", "plain/left", "é" * 300, "//", "../x"]
    labels = ["m/1", "m_1"]
    pictures = Pictures(tmp_path / "out", labels, names, error_maps=True)
    for label in labels:
        for index, name in enumerate(names):
            sample = made_pair(np.full((4, 8), 10.0), name)
            measured = DisparityErrors.measure(sample.disparity, sample.disparity, sample.valid)
            pictures(label, index, sample, sample.disparity, measured)
    maps = tmp_path / "out" / "error_maps"
    written = [path.relative_to(maps) for path in tmp_path.rglob("*.png")]
    assert len({str(path).lower() for path in written}) == len(labels) * len(names)
    assert all(len(path.parts) == 2 for path in written)
    assert sum(path.name == "plain_left.png" for path in written) == 2


def sheet_of(shape, error=0.0, known=1.0):
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 40, shape).astype(np.float32)
    left = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return sheet_row(left, truth + np.float32(error), truth, rng.random(shape) < known, "a pair")


@pytest.mark.parametrize("shape", [(30, 40), (400, 100), (3, 900)])
def test_panels_fit_and_keep_their_shape(shape):
    panels = sheet_of(shape).images
    assert len(panels) == 4
    for panel in panels:
        height, width = panel.shape[:2]
        assert width == 400 or height == 400
        assert width <= 400
        assert height <= 400
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.3)


def test_a_row_shows_prediction_error_and_truth():
    _, predicted, error, true = sheet_of((300, 400)).images
    np.testing.assert_array_equal(predicted, true)
    perfect = error_map(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), bool))
    assert (error == perfect[0, 0]).all()
    wrong = sheet_of((300, 400), error=20).images[2]
    assert (wrong != perfect[0, 0]).any(axis=-1).all()


def test_a_sheet_holds_its_rows_in_order():
    rows = [sheet_of((300, 400)), sheet_of((150, 400), error=20)]
    picture = worst_sheet("the worst", rows)
    x, y = 12, 76 + 34 + 34
    np.testing.assert_array_equal(picture[y : y + 300, x : x + 400], rows[0].images[0])
    y += 300 + 24 + 34
    x += 2 * 412
    np.testing.assert_array_equal(picture[y : y + 150, x : x + 400], rows[1].images[2])


def test_a_row_has_the_colours_of_its_own_disparities():
    low, high = (sheet_row(left, d, d, d > 0, "") for left, d in (pair_at(5), pair_at(150)))
    ranges = [row.bar.colours.get_clim() for row in (low, high)]
    assert ranges == [(0, 32), (135, 167)]
    bottom = worst_sheet("", [low]).shape[0]
    assert worst_sheet("", [low, high]).shape[0] > bottom


def pair_at(disparity):
    """A grey image and a map of slightly more than one disparity."""
    made = np.linspace(disparity, disparity + 1.5, 30 * 40, dtype=np.float32).reshape(30, 40)
    return np.full((30, 40, 3), 90, np.uint8), made


def test_nothing_known_is_drawn_too():
    assert worst_sheet("the worst", [sheet_of((30, 40), known=0.0)]).size

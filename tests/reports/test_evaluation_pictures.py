import numpy as np
from made_pairs import made_pair

from ea_psmnet.files import read_image
from ea_psmnet.inference.outputs import error_map
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports import evaluation_pictures
from ea_psmnet.reports.evaluation_pictures import Pictures


def show(pictures, errors, label="ours"):
    """Pairs 0, 1, ... of 4 x 8 pixels with these errors; None: nothing known."""
    for index, error in enumerate(errors):
        sample = made_pair(
            np.full((4, 8), 10.0), f"p/{index}", valid=np.full((4, 8), error is not None)
        )
        disparity = np.full((4, 8), 10 + (error or 0), np.float32)
        measured = DisparityErrors.measure(disparity, sample.disparity, sample.valid)
        pictures(label, index, sample, disparity, measured)


def drawn(monkeypatch):
    """Captions of the rows of every sheet of the worst, as they are drawn."""
    sheets = []

    def draw(title, rows):
        sheets.append((title, [row.caption.split(":")[0] for row in rows]))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(evaluation_pictures, "worst_sheet", draw)
    return sheets


def test_the_ten_worst_are_drawn_worst_first(tmp_path, monkeypatch):
    sheets = drawn(monkeypatch)
    pictures = Pictures(tmp_path, worst=True)
    show(pictures, [1, 9, None, 3, np.nan, 5, 9, 2, 2, 2, 2, 0.5, 4])
    written = pictures.finish()
    order = [4, 1, 6, 5, 12, 3, 7, 8, 9, 10]  # what has no prediction at all is worst
    assert sheets == [("ours: the 10 pairs of the highest EPE", [f"p/{i}" for i in order])]
    assert written == {"ours: the 10 pairs of the highest EPE": "worst/ours.png"}
    assert (tmp_path / "worst" / "ours.png").is_file()


def test_processes_put_their_worst_together(tmp_path, monkeypatch):
    sheets = drawn(monkeypatch)
    parts = [Pictures(tmp_path, worst=True) for _ in range(2)]
    show(parts[0], [1, 7])
    show(parts[1], [3])
    theirs = parts[1]._worst
    monkeypatch.setattr(evaluation_pictures, "gather", lambda mine: [*mine, {}, theirs])
    parts[0].finish()
    assert sheets[0][1] == ["p/1", "p/0", "p/0"]


def test_error_maps_are_the_errors(tmp_path):
    show(Pictures(tmp_path, error_maps=True), [0.3, None], label="a (b) c")
    maps = [read_image(tmp_path / "error_maps" / "a_b_c" / f"p_{i}.png") for i in (0, 1)]
    truth = np.full((4, 8), 10.0)
    np.testing.assert_array_equal(maps[0], error_map(truth + 0.3, truth, truth > 0))
    assert not maps[1].any()


def test_nothing_is_drawn_unasked(tmp_path):
    pictures = Pictures(tmp_path)
    show(pictures, [1])
    assert pictures.finish() == {}
    assert list(tmp_path.iterdir()) == []

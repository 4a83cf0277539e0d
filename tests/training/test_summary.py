"""The page and the picture that are made of a run's records."""

import json

import cv2
import numpy as np
import pytest

from ea_psmnet.files import write_json
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.run_folder import record_session
from ea_psmnet.training.summary import binned, main, write_curves, write_summary

FACTS = {"parameters": 12345, "precision": "bfloat16", "device": "cpu", "processes": 2}


def step(number, rate=4.0, waiting=0.1, **changes):
    return {
        "kind": "step", "step": number, "elapsed": 2.0 * number, "loss": 8.0 / number, "epe": 1.0,
        "lr": 1e-3, "samples_per_second": rate, "waiting": waiting, "memory": number / 2,
        "skipped": 1,
    } | changes  # fmt: skip


def validation(number, epe):
    def figures(value):
        return {"EPE": value, "bad-1": 40.0, "bad-3": 20.0}

    by_range = {"0 to 16 px": figures(epe and epe / 2), "16 to 32 px": figures(None)}
    return {"kind": "validation", "step": number, "elapsed": 2.0 * number + 1, "images": 7} | (
        figures(epe) | {"by_range": by_range}
    )


@pytest.fixture
def folder(tmp_path):
    """Five steps of a run of eight, with a validation after each two."""
    folder = tmp_path / "run"
    config = TrainingConfig(
        out=folder,
        data="folder",
        root=tmp_path,
        batch=12,
        micro_batch=2,
        steps=8,
        clip=1.0,
        likelihood=0.3,
    )
    write_json(folder / "config.json", config.to_dict())
    for before in (0, 3):
        record_session(folder / "environment.json", FACTS | {"steps": 8, "steps_before": before})
    records = [step(1), step(2), validation(2, 0.5), step(3), step(4), validation(4, 0.75)]
    write_json(folder / "best.json", {"step": 2})
    write_records(folder, [*records, step(5, rate=1.0, waiting=0.6)])
    return folder


def write_records(folder, records):
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines))


def cells(page, label):
    """Cells of the table row that begins with a label."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_tells_what_was_trained_from_what_and_for_how_long(folder, tmp_path):
    page = write_summary(folder).read_text()
    assert page.startswith("# Training run run\n\nNot finished: 5 of 8 steps;")
    assert cells(page, "network") == ["ea-psmnet, 12,345 parameters"]
    assert cells(page, "trained from") == ["scratch, seed 0"]
    assert cells(page, "data") == [f"folder {tmp_path}"]
    assert cells(page, "batch") == ["12: 2 at once x 3 in turn x 2 processes"]
    assert cells(page, "loss") == ["smooth L1 + 0.3 likelihood"]
    assert cells(page, "optimiser") == ["Adam, rate 0.002 (constant), gradients clipped to 1"]
    assert cells(page, "precision, normalisation") == ["bfloat16, batch"]
    assert cells(page, "training time") == ["0:00:10, 2 starts"]
    assert cells(page, "samples seen") == ["60"]
    assert cells(page, "samples per second") == ["6 overall, 4 in the median step"]
    # Four steps of 3 s, of which 0.3 s in waiting, and one of 12 s with 7.2 s.
    assert cells(page, "waiting for data") == [f"{(4 * 0.3 + 7.2) / 24:.1%} of the steps' time"]
    assert cells(page, "most memory") == ["2.5 GiB"]
    assert cells(page, "skipped steps") == ["1"]


def test_features_of_imagenet_are_told(folder):
    config = json.loads((folder / "config.json").read_text())
    structure = {"features": "efficientnet-lite0"}
    for imagenet, told in (
        (True, "ImageNet's features, the rest from scratch"),
        (False, "scratch"),
    ):
        changed = config | {"structure": structure, "imagenet": imagenet}
        write_json(folder / "config.json", changed)
        assert cells(write_summary(folder).read_text(), "trained from") == [f"{told}, seed 0"]


def test_a_run_whose_last_validation_is_due_is_not_finished(folder):
    config = json.loads((folder / "config.json").read_text())
    records = [step(number) for number in range(1, 9)]
    for every, ended, told in (
        (None, records, "Finished: 8 steps."),
        (2, records, "Not finished"),
        (2, [*records, validation(8, 0.5)], "Finished"),
    ):
        write_json(folder / "config.json", config | {"validate_every": every})
        write_records(folder, ended)
        assert told in write_summary(folder).read_text()


def test_the_final_and_the_best_validation_stand_side_by_side(folder):
    page = write_summary(folder).read_text()
    assert "Final, after 4 steps, and best, after 2; 7 images;" in page
    assert cells(page, "all pixels")[:2] == ["0.750", "0.500"]
    assert cells(page, "0 to 16 px")[:2] == ["0.375", "0.250"]
    assert "16 to 32 px" not in page


def test_the_best_is_not_one_of_other_images(folder):
    """As after a change of the validation's images, with which the search for it begins anew."""
    write_json(folder / "best.json", {"step": 4})
    assert "Final, after 4 steps, is the best" in write_summary(folder).read_text()


def test_a_final_validation_that_is_the_best_stands_alone(folder):
    write_records(folder, [step(1), validation(1, 2.0), step(2), validation(2, 1.0)])
    page = write_summary(folder).read_text()
    assert "Final, after 2 steps, is the best; 7 images;" in page
    assert cells(page, "all pixels") == ["1.000", "40.00", "20.00"]


def test_a_run_without_validation_has_no_table_of_it(folder):
    write_records(folder, [step(number) for number in range(1, 9)])
    page = write_summary(folder).read_text()
    assert "Finished: 8 steps." in page
    assert "Validation" not in page


def test_a_revision_that_changed_on_the_way_is_told(folder):
    path = folder / "environment.json"
    first, second = json.loads(path.read_text())
    first |= {"revision": "a" * 40, "dirty": True}
    second |= {"revision": None, "dirty": None}
    write_json(path, [first, second])
    told = cells(write_summary(folder).read_text(), "revision")
    assert told == ["aaaaaaaaaaaa with changes, then unknown (no git clone)"]


def test_a_folder_without_a_run_is_told_in_a_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run that has taken a step" in capsys.readouterr().err
    assert main([]) == main(["--help"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("config.json", text) for text in ("{", "[]", "{}", '{"network": null}')),
        ("environment.json", '[{"revision": 7}]'),
    ],
)
def test_damage_is_told_in_a_line(folder, capsys, name, text):
    (folder / name).write_text(text)
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}")
    assert "damaged" in line
    assert not (folder / "summary.md").exists()


def test_validations_by_other_ranges_stand_side_by_side(folder):
    """As those of an older program may."""
    older = validation(2, 0.5) | {"by_range": {"all near": {"EPE": 0.5}}}
    write_records(folder, [step(1), step(2), older, step(3), validation(3, 1.0)])
    page = write_summary(folder).read_text()
    assert cells(page, "0 to 16 px")[:2] == ["0.500", "-"]


def test_the_command_writes_the_page(folder, capsys):
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "summary.md")


# Curves -------------------------------------------------------------------------------------------


def test_bins_hold_means_and_quantiles_of_what_is_finite():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])
    mean, low, high = binned(values, 3)
    assert mean.tolist()[:2] == [2.0, 5.0]
    assert low[0] == pytest.approx(1.2)
    assert high[0] == pytest.approx(2.8)
    assert np.isnan([mean[2], low[2], high[2]]).all()
    assert binned(values, 100).shape == (3, 6)


@pytest.mark.slow
def test_each_panel_shows_its_own_figures(tmp_path):
    """A change of one kind of figure changes one quarter of the picture."""
    records = [step(number, epe=5.0 / number) for number in range(1, 9)] + [validation(8, 1.0)]
    before = drawn(tmp_path, records)
    changes = [("loss", 0), ("epe", 1), ("lr", 2)]
    for name, panel in changes:
        changed = [r | {name: r[name] * (1 + r["step"] % 2)} if name in r else r for r in records]
        assert panels_that_differ(before, drawn(tmp_path, changed)) == [panel]
    later = [*records, validation(9, 0.5)]
    assert panels_that_differ(before, drawn(tmp_path, later)) == [3]


def drawn(folder, records):
    write_curves(folder / "curves.png", records)
    return cv2.imread(str(folder / "curves.png")).astype(int)


def panels_that_differ(one, other):
    height, width = one.shape[0] // 2, one.shape[1] // 2
    corners = [(0, 0), (0, width), (height, 0), (height, width)]
    difference = np.abs(one - other).sum(2) > 30
    return [
        n for n, (y, x) in enumerate(corners) if difference[y : y + height, x : x + width].any()
    ]


def test_ranges_that_a_validation_lacks_are_drawn_without(tmp_path):
    older = validation(2, 0.5) | {"by_range": {"all near": {"EPE": 0.5}}}
    assert drawn(tmp_path, [older, validation(3, 1.0)]).std() > 1


def test_what_has_no_finite_figure_is_drawn_without(tmp_path):
    records = [step(1, loss=None, epe=None), step(2, loss=None, epe=0.0), validation(2, None)]
    assert drawn(tmp_path, records).std() > 1
    assert drawn(tmp_path, []).std() > 1

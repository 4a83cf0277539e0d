"""One pass over made-up pairs: what is counted, in which order, and that nothing changes it."""

import gzip
import json
import math
import os
import socket
import subprocess
import warnings
from dataclasses import replace

import numpy as np
import pytest
from command_line import ROOT, command
from dataset_trees import SIZE, folder
from made_pairs import made_pair, prediction

from ea_psmnet.__main__ import main
from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.evaluation import evaluation
from ea_psmnet.evaluation.evaluation import evaluate_predictors
from ea_psmnet.evaluation.predictors import Predictor, baseline, network, saved_predictions
from ea_psmnet.evaluation.protocols import PROTOCOLS, find_protocols
from ea_psmnet.evaluation.regions import ALL
from ea_psmnet.evaluation.report import EvaluationReport
from ea_psmnet.evaluation.shares import Journal
from ea_psmnet.files import write_disparity_png, write_image, write_npy, write_pfm
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.metrics import DisparityErrors, quantiles


def random_pairs(count=11, seed=0):
    rng = np.random.default_rng(seed)
    return [
        made_pair(
            rng.uniform(0, 210, (6, 9)),
            f"set/{index:02}",
            valid=rng.random((6, 9)) < 0.8,
            nonocc=rng.random((6, 9)) < 0.7 if index % 3 else None,
        )
        for index in range(count)
    ]


def blurred(sample):
    """A prediction that depends on nothing but the name."""
    rng = np.random.default_rng(int(sample.name[-2:]))
    noisy = sample.disparity + rng.standard_cauchy(sample.disparity.shape)
    return np.where(rng.random(noisy.shape) < 0.1, np.nan, noisy).astype(np.float32)


def constant(sample):
    return np.full_like(sample.disparity, 100)


METHODS = (Predictor("blurred", blurred), Predictor("constant", constant, timed=False))


def evaluated(pairs, **options):
    return evaluate_predictors(METHODS, pairs, protocols=find_protocols([]), **options)


def test_predictors_of_one_name_are_refused():
    with pytest.raises(ValueError, match="2 predictors have the labels blurred"):
        evaluate_predictors([METHODS[0]] * 2, [made_pair([5.0, 6.0])])


def figures(evaluations):
    """All that does not depend on the clock."""
    records = [each.to_dict() for each in evaluations]
    for record in records:
        for image in record["images"]:
            del image["seconds"]
    return records


def test_all_methods_see_each_pair_once():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    pairs = Counted(random_pairs())
    blurred_result, constant_result = evaluated(pairs)
    assert Counted.reads == len(pairs)
    assert [image.name for image in blurred_result.images] == [pair.name for pair in list(pairs)]
    assert (blurred_result.label, constant_result.label) == ("blurred", "constant")


def test_totals_are_those_of_all_pixels_at_once():
    pairs = random_pairs()
    result, _ = evaluated(pairs, limit=150)
    flat = [np.concatenate([f(p).ravel() for p in pairs]) for f in (blurred, lambda p: p.disparity)]
    counted = np.concatenate([(p.valid & (p.disparity < 150)).ravel() for p in pairs])
    whole = DisparityErrors.measure(*flat, counted)
    assert result.total.pixels == whole.pixels
    assert result.total.figures() == pytest.approx(whole.figures())
    errors = np.abs(flat[0] - flat[1])[counted]
    exact = quantiles(errors[np.isfinite(errors)])
    for name, value in exact.items():
        assert result.figures()[name] == pytest.approx(value, rel=1 / 256, abs=1 / 128)
    pooled = next(p for p in result.protocols if p.name == "pooled")
    assert pooled.figures == pytest.approx(result.total.figures())
    assert (pooled.images, pooled.pixels) == (len(pairs), whole.pixels)


def test_batches_of_pairs_change_no_figure_and_those_of_protocols_do():
    seen = []

    def together(samples):
        seen.append([sample.name for sample in samples])
        return [StereoResult(blurred(sample), sample.left) for sample in samples]

    def fail(_):
        pytest.fail("predicted alone")

    pairs = random_pairs(5)
    methods = [Predictor("blurred", fail, together=together)]
    options = {"protocols": find_protocols([])}
    (result,) = evaluate_predictors(methods, pairs, batch=2, **options)
    assert seen == [["set/00", "set/01"], ["set/02", "set/03"], ["set/04"]]
    (alone,) = evaluate_predictors(METHODS[:1], pairs, **options)
    assert figures([result]) == figures([alone])
    (other,) = evaluate_predictors(METHODS[:1], pairs, protocol_batch=2, **options)
    changed = {
        ours.name
        for ours, theirs in zip(alone.protocols, other.protocols, strict=True)
        if ours != theirs
    }
    assert changed == {"psmnet", "gwcnet"}


# Killed, and gone on with -------------------------------------------------------------------------


class Killed(BaseException):
    """What no handler of errors catches."""


def counting(predicted, dies_at=None):
    """`blurred`, which notes what it predicts, and dies there."""

    def predict(sample):
        if sample.name == dies_at:
            raise Killed
        predicted.append(sample.name)
        return blurred(sample)

    return [Predictor("blurred", predict)]


@pytest.mark.parametrize("batch", [1, 2])
def test_an_evaluation_that_died_goes_on_and_finds_the_same(batch, tmp_path):
    pairs, options = random_pairs(5), {"protocols": find_protocols([]), "batch": batch}
    whole = evaluate_predictors(counting([]), pairs, **options)
    first, second = [], []
    journal = Journal(tmp_path, {"limit": "192"})
    with pytest.raises(Killed):
        evaluate_predictors(counting(first, "set/03"), pairs, journal=journal, **options)
    journal = Journal(tmp_path, {"limit": "192"})
    again = evaluate_predictors(counting(second), pairs, journal=journal, **options)
    assert first == ["set/00", "set/01", "set/02"]
    assert second == (["set/02"] if batch == 2 else []) + ["set/03", "set/04"]
    assert figures(again) == figures(whole)


@pytest.mark.parametrize(
    "changed", ["data/pair1/disp.npy", "data/pair0/nonocc.png", "theirs/pair0.npy"]
)
def test_pairs_whose_files_have_changed_are_measured_again(changed, tmp_path):
    pairs = PairFolder(folder(tmp_path / "data"))
    for frame in pairs.frames:
        write_npy(tmp_path / "theirs" / f"{frame.name}.npy", np.full(SIZE, 3, np.float32))

    def measured(journal):
        methods = [saved_predictions(tmp_path / "theirs", "theirs", pairs)]
        return evaluate_predictors(methods, pairs, journal=Journal(tmp_path / journal, {}))

    before = measured("kept")
    if changed.endswith(".npy"):
        write_npy(tmp_path / changed, np.full(SIZE, 7, np.float32))
    else:
        write_image(tmp_path / changed, np.zeros((*SIZE, 3), np.uint8))
    again = measured("kept")
    assert figures(again) == figures(measured("new")) != figures(before)
    assert len(list((tmp_path / "kept").glob("0*.gz"))) == 3


def test_methods_in_another_order_keep_their_own_measurements(tmp_path):
    pairs, journal = random_pairs(3), Journal(tmp_path, {})
    first, second = evaluate_predictors(METHODS, pairs, journal=journal)
    swapped = evaluate_predictors(METHODS[::-1], pairs, journal=journal)
    assert [each.label for each in swapped] == ["constant", "blurred"]
    assert figures(swapped) == figures([second, first])


def test_a_journal_of_other_settings_is_refused(tmp_path):
    settings = {"limit": "192", "ours": "hash"}
    journal = Journal(tmp_path / "unfinished", settings)
    Journal(tmp_path / "unfinished", {"limit": "64"})  # nothing was measured yet
    evaluate_predictors(METHODS[:1], random_pairs(1), journal=journal)
    Journal(tmp_path / "unfinished", settings)
    for other, told in (
        (settings | {"limit": "64"}, "has limit 192, not 64"),
        ({"limit": "192"}, "has ours hash, not none"),
        (settings | {"theirs": "x"}, "has theirs none, not x"),
    ):
        with pytest.raises(ValueError, match=told):
            Journal(tmp_path / "unfinished", other)


def damaged(record, place, value):
    """JSON with another value at a place."""
    *path, last = place
    part = record
    for step in path:
        part = part[step]
    part[last] = value
    return gzip.compress(json.dumps(record).encode())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: gzip.compress(json.dumps(record).encode())[:50], "damaged"),
        (lambda record: b"no gzip", "damaged"),
        (lambda record: gzip.compress(b"null"), "the content should be an object, not None"),
        (lambda record: gzip.compress(b"{}"), "has other methods, pairs or scores"),
        (lambda r: damaged(r, ["exact", "images"], []), "has other methods, pairs or scores"),
        (lambda r: damaged(r, ["exact", "images", 0, "index"], 7), "has other methods"),
        (lambda r: damaged(r, ["exact", "images", 0, "index"], "0"), "exact.images[0].index"),
        (lambda r: damaged(r, ["exact", "images", 0, "regions"], {}), "exact.images[0]: regions"),
        (lambda r: damaged(r, ["exact", "images", 0, "scores"], []), "has other methods"),
        (lambda r: damaged(r, ["exact", "images", 0, "image"], []), "exact.images[0].image"),
        (lambda r: damaged(r, ["exact", "histograms", "all", "bins"], [-1]), "exact.histograms"),
        (lambda r: damaged(r, ["exact", "histograms", "all", "counts"], []), "exact.histograms"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path, change, told):
    journal, protocols = Journal(tmp_path, {}), find_protocols(["kitti"])
    methods = [Predictor("exact", lambda sample: sample.disparity)]
    evaluate_predictors(methods, random_pairs(1), protocols=protocols, journal=journal)
    path = tmp_path / "000000.json.gz"
    path.write_bytes(change(json.loads(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ValueError, match="delete it, and its pairs") as caught:
        evaluate_predictors(methods, random_pairs(1), protocols=protocols, journal=journal)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "[]", '{"limit": ', "[" * 9999])
def test_damaged_settings_of_a_journal_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/settings\.json: .* delete {tmp_path}"):
        Journal(tmp_path, {"limit": "192"})


def test_a_setting_of_another_type_is_another_setting(tmp_path):
    (tmp_path / "settings.json").write_text('{"limit": 5}')
    with pytest.raises(ValueError, match="has limit 5, not 192"):
        Journal(tmp_path, {"limit": "192"})


def test_what_is_known_of_visibility_is_said():
    result, _ = evaluated(random_pairs(11))
    assert result.visibility_known == 7  # 0, 3, 6 and 9 have no mask
    assert set(result.regions) >= {"non-occluded", "occluded"}
    kitti = next(p for p in result.protocols if p.region == "non-occluded")
    (reason,) = kitti.dropped
    assert kitti.dropped[reason] == ("set/00", "set/03", "set/06", "set/09")
    assert kitti.images == 7
    (unknown,) = evaluate_predictors(METHODS[:1], random_pairs(1))
    assert unknown.visibility_known == 0
    assert "occluded" not in unknown.regions


def test_times_are_those_of_methods_that_run():
    timed, untimed = evaluated(random_pairs(2))
    assert timed.seconds == pytest.approx(sum(image.seconds for image in timed.images) / 2)
    assert timed.images[0].seconds > 0
    assert math.isnan(untimed.seconds)


def test_a_protocol_that_draws_images_counts_those():
    (raft,) = find_protocols(["raft"])
    drawing = replace(raft, chosen=lambda count: frozenset({1, count - 1}))
    pairs = random_pairs(4)
    (result,) = evaluate_predictors(METHODS[:1], pairs, protocols=[drawing])
    (scored,) = result.protocols
    assert scored.dropped == {"not among the 2 drawn": ("set/00", "set/02")}
    epes = [result.images[place].errors.epe for place in (1, 3)]
    assert scored.figures["EPE"] == pytest.approx(sum(epes) / 2)
    assert scored.pixels == sum(result.images[place].errors.pixels for place in (1, 3))


@pytest.mark.parametrize(("world", "batch"), [(2, 1), (3, 1), (2, 3), (3, 8)])
def test_shares_of_several_processes_merge_into_the_same(world, batch, monkeypatch):
    """The processes one after the other: each measures its share, the last one merges all."""
    pairs = random_pairs()
    alone = figures(evaluated(pairs))
    shares: list[list] = [[] for _ in range(2 * len(METHODS))]
    monkeypatch.setattr(evaluation, "process_count", lambda: world)
    for rank in reversed(range(world)):
        calls = iter(shares)

        def gather(values, calls=calls):
            share = next(calls)
            share.extend(values)
            return share

        monkeypatch.setattr(evaluation, "process_index", lambda rank=rank: rank)
        monkeypatch.setattr(evaluation, "gather", gather)
        if rank:  # incomplete as yet
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(evaluation, "_result", lambda *_: None)
                evaluated(pairs, batch=batch)
        else:
            assert figures(evaluated(pairs, batch=batch)) == alone


def test_a_saved_evaluation_reloads(tmp_path):
    saved = evaluated(random_pairs())
    EvaluationReport("random", tuple(saved)).write(tmp_path)
    read = EvaluationReport.read(tmp_path / "report.json").evaluations
    for each, again in zip(saved, read, strict=True):
        assert again.to_dict() == each.to_dict()
        assert again.total == each.total
        assert again.regions == each.regions
        assert again.protocols == each.protocols


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="0 pairs"):
        evaluated([])
    with pytest.raises(ValueError, match="batches of 0"):
        evaluated(random_pairs(1), batch=0)
    with pytest.raises(ValueError, match="protocols: 0"):
        evaluated(random_pairs(1), protocol_batch=0)
    with pytest.raises(ValueError, match="ground truth below 0"):
        evaluated(random_pairs(1), limit=0)


# Saved predictions --------------------------------------------------------------------------------


def test_the_pair_that_fails_is_named():
    class Refusing:
        name, fill, pad = "sgbm", True, False

        def match(self, _, **__):
            raise ValueError("too large")

        def __call__(self, *_):
            return self.match(_)

    for method in (network(Refusing(), "net"), baseline(Refusing())):
        with pytest.raises(ValueError, match=r"^set/00: too large"):
            method.predict_all(random_pairs(1))


def test_predictions_are_found_by_name(tmp_path):
    pairs = [made_pair([1.0, 2.0], name) for name in ("a/left/1", "b/left/1")]
    write_pfm(tmp_path / "a" / "left" / "1.pfm", prediction([3, np.inf]))
    write_pfm(tmp_path / "b_left_1.pfm", prediction([5, -1]))
    method = saved_predictions(tmp_path, "theirs", pairs)
    np.testing.assert_array_equal(method.predict(pairs[0]), [[3, np.nan]])
    np.testing.assert_array_equal(method.predict(pairs[1]), [[5, -1]])
    assert not method.timed
    assert method.file(pairs[1].name) == tmp_path / "b_left_1.pfm"


def test_a_finite_prediction_is_none_the_less_one_for_being_negative(tmp_path):
    """Truth 0.5 and 8, prediction -0.3 and 8: Middlebury's code clips to 0, the others do not."""
    pairs = [made_pair([0.5, 8.0])]
    write_pfm(tmp_path / "pair.pfm", prediction([-0.3, 8]))
    method = saved_predictions(tmp_path, "theirs", pairs)
    (found,) = evaluate_predictors([method], pairs, protocols=PROTOCOLS)
    figures = {result.name: result.figures for result in found.protocols if result.region == ALL}
    for name in ("psmnet", "gwcnet", "raft", "pooled", "kitti", "middlebury"):
        epe = 0.25 if name == "middlebury" else 0.4
        assert figures[name]["EPE"] == pytest.approx(epe), name
        assert figures[name].get("bad-1", 0) == 0
    assert found.total.figures()["bad-1"] == 0
    assert found.total.figures()["density"] == 100


def test_a_map_of_negative_values_only_is_told(tmp_path):
    pairs = [made_pair([1.0, 2.0], name) for name in ("a", "b")]
    write_pfm(tmp_path / "theirs/a.pfm", prediction([-1, np.inf]))
    write_pfm(tmp_path / "theirs/b.pfm", prediction([-1, 2]))
    method = saved_predictions(tmp_path / "theirs", "theirs", pairs)
    told = "theirs: all values of a prediction are negative; if only the sign"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.predict(pairs[1])
    with pytest.warns(UserWarning, match=told):
        method.predict(pairs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.predict(pairs[0])


def found_in(folder, names):
    """Relative paths of the files found for samples of these names."""
    pairs = [made_pair([1.0, 2.0], name) for name in names]
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        write = write_disparity_png if path.suffix == ".png" else write_pfm
        write(path, prediction([number + 1, 2]))
    method = saved_predictions(folder, "theirs", pairs)
    numbers = [round(float(method.predict(pair)[0, 0])) for pair in pairs]
    every = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.*"))]
    return [every[number - 1] for number in numbers]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["disp_0/000000_10.png", "disp_0/000007_10.png"], ["000000_10", "000007_10"]),
        (["disp_0/000000_10.png"], ["training/000000_10"]),
        (["000000_10.png"], ["training/000000_10"]),
        (["Teddy/disp0METHOD.pfm", "ArtL/disp0METHOD.pfm"], ["Teddy", "ArtL"]),
        (["Teddy/disp0A.pfm", "Teddy/disp0GT.pfm", "Teddy/disp1A.pfm"], ["Teddy"]),
        (["a/left.PFM", "b.Pfm"], ["a/left", "b"]),
        (["a_disparity.pfm", "b_disparity.png"], ["a", "b"]),
        (["a_b.pfm", "a/b.pfm"], ["a_b", "a/b"]),
        (["a\\nb.pfm"], ["a\\nb"]),
    ],
)
def test_names_of_predictions(tmp_path, files, names):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert found_in(tmp_path, names) == files[: len(names)]


@pytest.mark.parametrize(
    ("files", "names", "told"),
    [
        (["a_b.pfm"], ["a/b", "a_b"], r"a_b\.pfm: matches both a/b and a_b"),
        (["T/disp0A.pfm", "T/disp0B.pfm"], ["T"], "T: disp0A and disp0B; keep one method's"),
    ],
)
def test_doubtful_predictions_are_told(tmp_path, files, names, told):
    for file in files:
        write_pfm(tmp_path / file, prediction([1, 2]))
    with pytest.raises(ValueError, match=told):
        saved_predictions(tmp_path, "theirs", [made_pair([1.0, 2.0], name) for name in names])


def test_a_wrong_name_is_not_taken_for_kittis(tmp_path):
    write_pfm(tmp_path / "0006.pfm", prediction([1, 2]))
    with pytest.raises(FileNotFoundError, match="no prediction for 1 of 1 images: a/left/0006"):
        saved_predictions(tmp_path, "theirs", [made_pair([1.0, 2.0], "a/left/0006")])


def test_missing_predictions_are_named(tmp_path):
    write_pfm(tmp_path / "00.pfm", prediction([3, 4]))
    pairs = [made_pair([1.0, 2.0], f"{index:02}") for index in range(13)]
    with pytest.raises(FileNotFoundError, match=r"12 of 13 images: 01, .*10 and 2 more"):
        saved_predictions(tmp_path, "theirs", pairs)


def test_a_prediction_of_another_size_is_refused(tmp_path):
    write_pfm(tmp_path / "pair.pfm", prediction([3, 4, 5]))
    sample = made_pair([1.0, 2.0])
    method = saved_predictions(tmp_path, "theirs", [sample])
    with pytest.raises(ValueError, match=r"pair\.pfm: 3 x 1 pixels, but pair has 2 x 1"):
        method.predict(sample)


@pytest.mark.slow
def test_processes_of_a_launch_give_the_figures_of_one(tmp_path):
    """Two real processes, which share three pairs: one of them has two."""
    rng = np.random.default_rng(0)
    for index in range(3):
        folder = tmp_path / "pairs" / str(index)
        for view in ("left", "right"):
            write_image(folder / f"{view}.png", np.zeros((8, 12, 3), np.uint8))
        write_pfm(folder / "disp.pfm", rng.uniform(1, 30, (8, 12)))
        write_pfm(tmp_path / "theirs" / f"{index}.pfm", rng.uniform(1, 30, (8, 12)))
    options = f"evaluate --root {tmp_path}/pairs --predictions {tmp_path}/theirs --worst "
    options += "--sheets --out"
    assert main([*options.split(), str(tmp_path / "one")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun starts them.
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command(*options.split(), tmp_path / "two"),
            cwd=ROOT,
            env=os.environ | launch | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    sheets = [f"sheets/theirs/{index}.png" for index in range(3)]
    for name in ("report.json", "report.md", "images.csv", "worst/theirs.png", *sheets):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

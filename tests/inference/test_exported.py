"""The runner of exported files: what it feeds the graph, what it refuses, and what it imports."""

import json
import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT

from ea_psmnet import PSMNetConfig, StereoMatcher, __version__, build_model
from ea_psmnet.commands.options import MatcherOptions
from ea_psmnet.evaluation.predictors import network
from ea_psmnet.files import read_pfm, write_image
from ea_psmnet.inference.exported import KEY, ExportedMatcher, ExportRecord
from ea_psmnet.sample import StereoSample

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RECORD = ExportRecord(
    config={},
    max_disparity=32,
    mean=(0.5, 0.25, 0.125),
    std=(1.0, 1.0, 1.0),
    multiple=16,
    border="constant",
    size=None,
    precision="float32",
    weights="made",
    sha256="0" * 64,
    version=__version__,
)
"""Of the graph of `graph_file`."""


def changed(**values):
    return ExportRecord(**{**vars(RECORD), **values})


def graph_file(path, record=RECORD):
    """A graph that says 100 times the left image's red plus the right image's green."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    views = [
        helper.make_tensor_value_info(name, kind, [1, 3, "height", "width"])
        for name in ("left", "right")
    ]
    weights = {"red": [100, 0, 0], "green": [0, 1, 0]}
    made = helper.make_graph(
        [
            helper.make_node("Mul", ["left", "red"], ["l"]),
            helper.make_node("Mul", ["right", "green"], ["r"]),
            helper.make_node("Add", ["l", "r"], ["both"]),
            helper.make_node("ReduceSum", ["both", "axes"], ["disparity"], keepdims=0),
        ],
        "made",
        views,
        [helper.make_tensor_value_info("disparity", kind, [1, "height", "width"])],
        [
            *(helper.make_tensor(n, kind, [1, 3, 1, 1], w) for n, w in weights.items()),
            helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if record is not None:
        helper.set_model_props(model, {KEY: record.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


def expected(left, right):
    return (100 * left[..., 0].astype(np.float64) + right[..., 1]) / 255


@pytest.fixture
def pair():
    return tuple(np.random.default_rng(0).integers(0, 256, (2, 37, 51, 3), dtype=np.uint8))


@pytest.mark.parametrize("features", ["psmnet", "efficientnet-lite0"])
@pytest.mark.parametrize("size", [(32, 48), (33, 49), (40, 63), (47, 50)])
def test_images_are_prepared_as_by_the_matcher(features, size):
    config = PSMNetConfig(max_disparity=16, width=0.25, features=features, aggregation="basic")
    matcher = StereoMatcher(build_model(config), device="cpu", precision="exact")
    given = []

    def infer(*views):
        given.extend(views)
        return np.zeros((1, *views[0].shape[2:]), np.float32)

    kind = matcher.model.features
    record = changed(mean=kind.mean, border=kind.border, max_disparity=16)
    views = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert ExportedMatcher(infer, record).disparity(*views).shape == size
    for view, fed in zip(views, given, strict=True):
        np.testing.assert_array_equal(fed, matcher._to_input(view).numpy())


def test_the_padding_is_cut_off_where_it_was_added(tmp_path, pair):
    matcher = ExportedMatcher.load(graph_file(tmp_path / "made.onnx"))
    found = matcher.disparity(*pair)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(*pair), rtol=1e-5)


def test_a_call_is_that_of_the_matcher(tmp_path, pair):
    paths = [tmp_path / "left.png", tmp_path / "right.png"]
    for path, view in zip(paths, pair, strict=True):
        write_image(path, view)
    matcher = ExportedMatcher.load(graph_file(tmp_path / "made.onnx"), threads=1)
    result = matcher(*paths)
    np.testing.assert_allclose(result.disparity, expected(*pair), rtol=1e-5)
    np.testing.assert_array_equal(result.image, pair[0])
    (other,) = matcher.match([pair])
    np.testing.assert_array_equal(other.disparity, result.disparity)


def test_openvino_files_are_read_with_their_weights(tmp_path, pair):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(graph_file(tmp_path / "made.onnx"))
    model.set_rt_info(RECORD.to_json(), [KEY])
    openvino.serialize(model, tmp_path / "made.xml", tmp_path / "made.bin")
    matcher = ExportedMatcher.load(tmp_path / "made.xml", threads=1)
    assert matcher.record.to_json() == RECORD.to_json()
    np.testing.assert_allclose(matcher.disparity(*pair), expected(*pair), rtol=1e-5)
    (tmp_path / "made.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"made\.bin"):
        ExportedMatcher.load(tmp_path / "made.xml")


@pytest.mark.parametrize(
    ("record", "shape", "message"),
    [
        (RECORD, (16, 16), "16 px wide, less than the 32"),
        (changed(size=(48, 64)), (32, 64), "32 x 64.* is for 48 x 64"),
    ],
)
def test_sizes_that_the_file_is_not_for(tmp_path, record, shape, message):
    matcher = ExportedMatcher.load(graph_file(tmp_path / "made.onnx", record))
    image = np.zeros((*shape, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        matcher.disparity(image, image)


def test_other_arrays_are_refused(tmp_path):
    matcher = ExportedMatcher.load(graph_file(tmp_path / "made.onnx"))
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="of uint8, not"):
        matcher.disparity(image.astype(np.float32), image)
    with pytest.raises(ValueError, match="differ in size"):
        matcher.disparity(image, image[:16])


def test_results_that_are_no_numbers_are_refused(tmp_path):
    matcher = ExportedMatcher(lambda left, right: left[0] * np.float32(np.nan), RECORD)
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="NaN"):
        matcher.disparity(image, image)


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not written by the command export"):
        ExportedMatcher.load(graph_file(tmp_path / "other.onnx", None))
    with pytest.raises(ValueError, match="description is damaged"):
        ExportedMatcher.load(graph_file(tmp_path / "odd.onnx", changed(border="mirrored")))
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match=r"text\.onnx: not readable by ONNX Runtime"):
        ExportedMatcher.load(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        ExportedMatcher.load(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"end in \.onnx or \.xml"):
        ExportedMatcher.load(tmp_path / "text.pb")


def test_a_missing_runtime_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install onnxruntime"):
        ExportedMatcher.load(graph_file(tmp_path / "made.onnx"))


def test_the_runner_needs_numpy_and_onnx_runtime_alone(tmp_path, pair):
    graph_file(tmp_path / "made.onnx")
    np.save(tmp_path / "pair.npy", np.stack(pair))
    program = (
        "import sys, json, numpy as np\n"
        "for name in ('torch', 'cv2', 'PIL', 'matplotlib', 'pydantic', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from ea_psmnet.inference.exported import ExportedMatcher\n"
        f"matcher = ExportedMatcher.load({str(tmp_path / 'made.onnx')!r})\n"
        f"found = matcher.disparity(*np.load({str(tmp_path / 'pair.npy')!r}))\n"
        "print(json.dumps([float(found.sum()), list(found.shape)]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    total, shape = json.loads(run.stdout)
    assert shape == [37, 51]
    assert total == pytest.approx(expected(*pair).sum(), rel=1e-5)


def test_predict_runs_an_exported_file_without_torch(tmp_path, pair):
    for name, view in zip(("left", "right"), pair, strict=True):
        write_image(tmp_path / f"{name}.png", view)
    line = ["predict", tmp_path / "left.png", tmp_path / "right.png", "--out", tmp_path / "out"]
    line += ["--checkpoint", graph_file(tmp_path / "made.onnx"), "--name", "p", "--threads", 1]
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'safetensors', 'trimesh', 'yaml'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from ea_psmnet.__main__ import main\n"
        f"code = main({[str(part) for part in line]!r})\n"
        "sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = read_pfm(tmp_path / "out" / "p_disparity.pfm")
    np.testing.assert_allclose(found, expected(*pair), rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--max-disparity", "64"), "made.onnx: of an exported network only --threads"),
        (("--precision", "exact"), "made.onnx: of an exported network only --threads"),
        (("--two-scales",), "two scales need the weights"),
        (("--range", "auto"), "neither confidence nor --range auto"),
        (("--write", "confidence"), "neither confidence nor --range auto"),
        (("--min-confidence", "0.5"), "neither confidence nor --range auto"),
    ],
)
def test_what_a_file_cannot_do_is_told_once(tmp_path, pair, option, told, capsys):
    from ea_psmnet.__main__ import main

    for name in ("a", "b"):
        for side, view in zip(("left", "right"), pair, strict=True):
            write_image(tmp_path / "pairs" / name / f"{side}.png", view)
    images = [str(tmp_path / "pairs" / "a" / f"{side}.png") for side in ("left", "right")]
    checkpoint = str(graph_file(tmp_path / "made.onnx"))
    out = tmp_path / "out"
    for inputs in (images, [str(tmp_path / "pairs")]):
        line = ["predict", *inputs, "--out", str(out), "--checkpoint", checkpoint, *option]
        assert main(line) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_evaluation_takes_an_exported_file(tmp_path, pair):
    options = MatcherOptions(checkpoint=graph_file(tmp_path / "made.onnx"), threads=1)
    predictor = network(options.predictor(), "made")
    truth = np.zeros(pair[0].shape[:2], np.float32)
    sample = StereoSample(*pair, truth, truth == 0, "pair")
    (found,) = predictor.predict_all([sample])
    np.testing.assert_allclose(found.disparity, expected(*pair), rtol=1e-5)

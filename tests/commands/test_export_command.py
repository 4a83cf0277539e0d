"""`export` as a user runs it: the file, its proof, and what is refused."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from command_line import ROOT
from tensorrt_operators import TENSORRT

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.__main__ import main
from ea_psmnet.experiments import parity
from ea_psmnet.experiments.parity import LIMIT, PairParity, Parity, check_parity
from ea_psmnet.files import content_hash
from ea_psmnet.inference.export import export_paths
from ea_psmnet.inference.exported import KEY, ExportedMatcher, ExportRecord
from ea_psmnet.models.normalisation import batch_norms
from ea_psmnet.models.weights import load_model, save_model

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small network whose statistics and scores have the sizes of a trained one's."""
    torch.manual_seed(0)
    config = PSMNetConfig(max_disparity=32, width=0.25, aggregation="basic", residuals=0)
    model = build_model(config)
    for norm in batch_norms(model):
        norm.momentum = 1.0
    views = torch.rand(2, 2, 3, 64, 96)
    with torch.no_grad():
        deviation = model.train()(*views).scores[-1].std()
        model.aggregation.classifiers[-1][2].weight /= deviation
    path = tmp_path_factory.mktemp("weights") / "unit.safetensors"
    save_model(path, model)
    return path


def run(out, *options):
    line = ("export", "--out", out, "--pairs", 1, "--threads", 1, *options)
    return main([str(part) for part in line])


def fails(capsys, message, out, *options):
    """The command ends with 2 and one line, and leaves nothing in the folder."""
    assert run(out, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not out.parent.exists() or not list(out.parent.iterdir())


# The proof ----------------------------------------------------------------------------------------


def made_parity(*means, epe=1.0, exported_epe=1.5):
    return Parity(
        [
            PairParity(f"{n}", 100 * (n + 1), 2 * mean, mean, epe, exported_epe, 3.0, 2.0)
            for n, mean in enumerate(means)
        ]
    )


def test_figures_of_several_pairs():
    both = made_parity(0.1, 0.4)
    assert both.mean == pytest.approx((100 * 0.1 + 200 * 0.4) / 300)
    assert both.to_dict() == pytest.approx(
        {"pairs": 2, "max_px": 0.8, "mean_px": 0.3, "epe_change_px": 0.5, "speed": 1.5}
    )
    unknown = made_parity(0.1, epe=float("nan"))
    assert unknown.to_dict()["epe_change_px"] is None


def test_the_limit_is_on_the_mean():
    check_parity(made_parity(0.0, LIMIT), "a.onnx")
    for mean in (LIMIT * 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"a\.onnx: not kept"):
            check_parity(made_parity(mean), "a.onnx")


def test_each_size_has_its_file(tmp_path):
    out = tmp_path / "a.onnx"
    assert export_paths(out, []) == export_paths(out, [(32, 64)]) == [out]
    two = export_paths(out, [(32, 64), (48, 64)])
    assert [path.name for path in two] == ["a-32x64.onnx", "a-48x64.onnx"]


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "40", "64"], "try 48 for 40"),
        (["--size", "32", "16"], "searches 32 px, more than the width"),
        (["--size", "32"], "pairs of height and width"),
        (["--precision", "bfloat16"], "no bfloat16 convolutions"),
        (["--format", "openvino"], "ends in .xml"),
    ],
)
def test_impossible_exports(checkpoint, tmp_path, capsys, options, message):
    fails(capsys, message, tmp_path / "new" / "a.onnx", "--checkpoint", checkpoint, *options)


def test_a_missing_package_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = "pip install onnx onnxscript onnxruntime"
    fails(capsys, message, tmp_path / "new" / "a.onnx", "--checkpoint", checkpoint)


# Files --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_onnx_file_predicts_as_the_network(checkpoint, tmp_path, capsys, precision):
    import onnx

    out = tmp_path / "a.onnx"
    options = ("--checkpoint", checkpoint, "--size", 64, 96, "--precision", precision)
    assert run(out, *options) == 0
    assert re.search(r"a\.onnx beside the network in float32", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= TENSORRT
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    record = ExportRecord(**json.loads({p.key: p.value for p in model.metadata_props}[KEY]))
    assert record.sha256 == content_hash(checkpoint)
    assert record.config == load_model(checkpoint).config.to_dict()
    assert (tuple(record.size), record.precision) == ((64, 96), precision)
    views = np.random.default_rng(0).integers(0, 256, (2, 61, 90, 3), dtype=np.uint8)
    expected = StereoMatcher.load(checkpoint, device="cpu", precision="exact")(*views).disparity
    difference = np.abs(ExportedMatcher.load(out).disparity(*views) - expected)
    assert difference.mean() < (1e-4 if precision == "float32" else 0.05)


@pytest.mark.slow
def test_files_for_any_size(checkpoint, tmp_path):
    out = tmp_path / "a.onnx"
    assert run(out, "--checkpoint", checkpoint) == 0
    matcher = StereoMatcher.load(checkpoint, device="cpu", precision="exact")
    exported = ExportedMatcher.load(out)
    for size in ((32, 48), (75, 130), (300, 41)):
        views = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
        difference = np.abs(exported.disparity(*views) - matcher(*views).disparity)
        assert difference.mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_openvino_file_predicts_as_the_network(checkpoint, tmp_path, precision):
    pytest.importorskip("openvino")
    out = tmp_path / "a.xml"
    options = ["--format", "openvino", "--size", 64, 96, "--precision", precision]
    if precision == "bfloat16":  # it rounds the first layers, too, by more than the limit
        options.append("--force")
    assert run(out, "--checkpoint", checkpoint, *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    assert ExportedMatcher.load(out).record.precision == precision


@pytest.mark.slow
def test_a_file_that_differs_is_kept_by_force_only(checkpoint, tmp_path, capsys, monkeypatch):
    right = ExportedMatcher.disparity
    wrong = lambda *arguments: right(*arguments) + 2 * np.float32(LIMIT)  # noqa: E731
    monkeypatch.setattr(parity.ExportedMatcher, "disparity", wrong)
    options = ("--checkpoint", checkpoint, "--size", 32, 64)
    fails(capsys, "0.100 px on average", tmp_path / "new" / "a.onnx", *options)
    assert run(tmp_path / "a.onnx", *options, "--force") == 0
    assert (tmp_path / "a.onnx").is_file()


def test_the_documented_command_of_tensorrt_names_the_inputs():
    text = (ROOT / "docs" / "export.md").read_text()
    for option in ("--minShapes", "--optShapes", "--maxShapes"):
        assert re.search(rf"{option}=left:1x3x\d+x\d+,right:1x3x\d+x\d+", text)

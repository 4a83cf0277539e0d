"""The benchmark of exports: sizes of installed packages."""

from importlib.metadata import distribution

import export
import numpy as np
import onnx
import pytest


def own_bytes(name):
    return sum(file.locate().stat().st_size for file in distribution(name).files)


def test_a_package_that_needs_nothing_has_its_own_size():
    assert distribution("packaging").requires is None
    assert export.installed_bytes(["packaging"]) == own_bytes("packaging")
    assert export.installed_bytes(["packaging", "Packaging"]) == own_bytes("packaging")


def test_what_packages_need_counts_once():
    pair = export.installed_bytes(["onnxruntime", "numpy"])
    assert pair == export.installed_bytes(["onnxruntime"])  # which needs numpy
    assert pair >= own_bytes("onnxruntime") + own_bytes("numpy")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match="no-such-package is not installed"):
        export.installed_bytes(["no-such-package"])


@pytest.mark.slow
def test_int8_rounds_all_2d_convolutions_but_the_first_ones(tmp_path, monkeypatch):
    file, rounded = tmp_path / "network.onnx", tmp_path / "rounded.onnx"
    onnx.save(three_convolutions(), file)
    monkeypatch.setattr(export, "_RANGES", (64, 96))
    monkeypatch.setattr(export, "_SCENES", 1)
    export.quantise(file, rounded, 1)
    names = {tensor.name for tensor in onnx.load(rounded).graph.initializer}
    weights = {name for name in names if "weight" in name and "_" not in name}
    assert weights == {"0.weight"}
    assert {"1.weight_quantized", "2.weight_quantized"} <= names


def three_convolutions():
    """One after the other on the left image; the right one is added to their output."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 3, 1, 1)).astype(np.float32) for _ in range(3)]
    names = ["left", "a", "b", "c"]
    nodes = [
        helper.make_node("Conv", [names[i], f"{i}.weight"], [names[i + 1]], name=f"conv{i}")
        for i in range(3)
    ]
    nodes.append(helper.make_node("Add", ["c", "right"], ["disparity"], name="add"))
    sides = [1, 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, floats, sides) for name in ("left", "right")],
        [helper.make_tensor_value_info("disparity", floats, sides)],
        [onnx.numpy_helper.from_array(w, f"{i}.weight") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])

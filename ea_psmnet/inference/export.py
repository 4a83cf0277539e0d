"""Networks as ONNX and OpenVINO files, with the description that `ExportedMatcher` reads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ea_psmnet import __version__
from ea_psmnet.atomic import atomic_path
from ea_psmnet.inference.exported import INPUTS, KEY, OUTPUT, ExportRecord
from ea_psmnet.models.deploy import ExportableNetwork
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PSMNet
from ea_psmnet.tables import check_choice

ExportFormat = Literal["onnx", "openvino"]
ExportPrecision = Literal["float32", "float16", "bfloat16"]

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
_OPSET = 20
_TRACED = (96, 160)
"""Size of the images that a graph for any size is traced with."""
_MOST = 2**14
"""Largest side of an image."""


def check_export(form: ExportFormat, precision: ExportPrecision, out: Path) -> None:
    """Check the format, precision and name of an export, and the packages that it needs.

    Raises:
        ValueError: Unknown format or precision, or one that the format does not have; a wrong
            suffix; or a package is not installed.
    """
    check_choice("format", form, get_args(ExportFormat))
    check_choice("precision", precision, get_args(ExportPrecision))
    if precision == "bfloat16" and form == "onnx":
        raise ValueError(
            "ONNX Runtime has no bfloat16 convolutions for CPUs: choose float16, or --format "
            "openvino"
        )
    if out.suffix != _SUFFIXES[form]:
        raise ValueError(f"{out}: --format {form} writes a file that ends in {_SUFFIXES[form]}")
    needed = ["onnx", "onnxscript", {"onnx": "onnxruntime", "openvino": "openvino"}[form]]
    for package in needed:
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(
                f"export to {form} needs {package} ({error}): run `pip install {' '.join(needed)}`"
            ) from None


def export_paths(out: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """The file of each size, `out` if there is at most one size, otherwise NAME-HEIGHTxWIDTH."""
    if len(sizes) < 2:
        return [out]
    return [out.with_stem(f"{out.stem}-{height}x{width}") for height, width in sizes]


def describe(
    network: PSMNet,
    size: tuple[int, int] | None,
    precision: ExportPrecision,
    *,
    weights: str,
    sha256: str,
) -> ExportRecord:
    """Describe an export of a network.

    Args:
        network: The network.
        size: Height and width of the images; None for any.
        precision: Type of the numbers.
        weights: Name of the weights.
        sha256: Hash of their file.

    Raises:
        ValueError: A side of the size is not a positive multiple of 16, or the width is less than
            the range of disparities.
    """
    reach = network.config.max_disparity
    if size is not None:
        for side in size:
            if side < SIZE_MULTIPLE or side > _MOST or side % SIZE_MULTIPLE:
                upper = max(SIZE_MULTIPLE, side + -side % SIZE_MULTIPLE)
                raise ValueError(
                    f"size {size[0]} {size[1]}: sides are multiples of {SIZE_MULTIPLE} up to "
                    f"{_MOST}; try {min(upper, _MOST)} for {side}"
                )
        if size[1] < reach:
            raise ValueError(
                f"size {size[0]} {size[1]}: the network searches {reach} px, more than the width: "
                f"give --max-disparity {size[1]}"
            )
    features = network.features
    return ExportRecord(
        config=network.config.to_dict(),
        max_disparity=reach,
        mean=features.mean,
        std=features.std,
        multiple=SIZE_MULTIPLE,
        border=features.border,
        size=size,
        precision=precision,
        weights=weights,
        sha256=sha256,
        version=__version__,
    )


@contextmanager
def written(
    network: PSMNet, record: ExportRecord, out: Path, form: ExportFormat
) -> Iterator[tuple[Path, Path]]:
    """Export to a temporary file, which becomes `out` if the block ends without error.

    Args:
        network: The network.
        record: Its description, by `describe`.
        out: The file; that of OpenVINO has its weights in another one, with the suffix .bin.
        form: Format of the file.

    Yields:
        The temporary file and the one of its weights, for `ExportedMatcher.load`.
    """
    model = _onnx_model(network, record)
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(out))
        weights = temporary
        if form == "onnx":
            temporary.write_bytes(model.SerializeToString())
        else:
            weights = stack.enter_context(atomic_path(out.with_suffix(".bin")))
            _write_openvino(model, record, temporary, weights)
        yield temporary, weights


def _write_openvino(model: Any, record: ExportRecord, xml: Path, weights: Path) -> None:
    import openvino

    converted = openvino.Core().read_model(model.SerializeToString())
    converted.set_rt_info(record.to_json(), [KEY])
    openvino.serialize(converted, xml, weights)


def _onnx_model(network: PSMNet, record: ExportRecord) -> Any:
    """Trace a network into an `onnx.ModelProto`."""
    dtype = torch.float16 if record.precision == "float16" else torch.float32
    images = tuple(torch.rand(1, 3, *(record.size or _TRACED)) for _ in INPUTS)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            ExportableNetwork(network, dtype).eval(),
            images,
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=None if record.size else _free_sides(),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim[-2:]
        for side, name in zip(sides, ("height", "width"), strict=True):
            if side.dim_param:  # a formula
                side.dim_param = name
    stated = model.metadata_props.add()
    stated.key, stated.value = KEY, record.to_json()
    return model


def _free_sides() -> tuple[dict[int, Any], dict[int, Any]]:
    """Height and width of both images in units of 16 pixels."""
    most = _MOST // SIZE_MULTIPLE
    height, width = (torch.export.Dim(name, min=2, max=most) for name in ("height", "width"))
    sides = {2: SIZE_MULTIPLE * height, 3: SIZE_MULTIPLE * width}
    return sides, sides


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress and its notes about its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

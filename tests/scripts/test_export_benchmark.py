"""The benchmark of exports: sizes of installed packages."""

from importlib.metadata import distribution

import export
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

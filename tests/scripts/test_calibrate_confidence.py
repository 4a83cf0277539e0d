"""Calibration of confidence: one command, whose result is in the description of the weights."""

from __future__ import annotations

import json
import runpy
import sys
import warnings

import pytest
from command_line import ROOT

from ea_psmnet.files import content_hash
from ea_psmnet.inference.confidence import read_confidence
from ea_psmnet.models.weights import load_model, save_model

SCRIPT = ROOT / "scripts" / "calibrate_confidence"


@pytest.fixture
def calibrate(monkeypatch):
    """Run the script in this process, where it finds its interpreter; returns its exit code."""
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv/bin/python"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code

    return run


@pytest.mark.slow
def test_a_description_keeps_what_it_has_and_gets_the_calibration(tmp_path, calibrate):
    weights, card = tmp_path / "mine.safetensors", tmp_path / "mine.json"
    save_model(weights, load_model("ea-light", max_disparity=64))
    card.write_text(json.dumps({"recipe": "my own", "confidence": "an older one"}))
    assert calibrate(weights, "--scenes", 3, "--size", 64, 128, "--device", "cpu") == 0
    written = json.loads(card.read_text())
    assert written["recipe"] == "my own"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = [read_confidence(weights, two_scales=value) for value in (False, True)]
    assert maps[0].weights != maps[1].weights
    for found in maps:
        assert found.network == content_hash(weights)
        assert found.scenes.startswith("3 of generator")
        assert 0 <= found.figures["ECE"] <= 100
        named = {"ECE before", "AUSE of bad-1", "errors within the deviation"}
        assert named <= found.figures.keys()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "nowhere: no such checkpoint"),
        (("--scenes", "2"), "--scenes must be at least 3"),
    ],
)
def test_bad_input_is_one_line(arguments, told, calibrate, capfd):
    assert calibrate(*arguments) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count("\n") == 1

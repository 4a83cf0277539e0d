"""The page about extensions: its code blocks run, and what they register works."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.attention import MECHANISMS, build_attention, closed_form
from ea_psmnet.datasets.builder import DATASETS, build_dataset
from ea_psmnet.models.head import HEADS
from ea_psmnet.models.volume import VOLUMES
from ea_psmnet.models.weights import load_model, save_model

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page():
    """The names that the blocks define; tables are as before afterwards."""
    tables = MECHANISMS, VOLUMES, HEADS, DATASETS
    before = [dict(table) for table in tables]
    names = {"__name__": "extending"}
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_a_step_trains_the_toys_and_they_predict(page):
    network = page["network"]
    sites = [m for m in network.modules() if isinstance(m, page["GatedMean"])]
    assert len(sites) == 3
    assert all(site.projection.weight.abs().sum() > 0 for site in sites)  # no longer the identity
    assert page["disparity"].shape == (32, 64)
    assert np.isfinite(page["disparity"]).all()


def test_weights_name_the_toys(page, tmp_path):
    save_model(tmp_path / "toy.safetensors", page["network"])
    loaded = load_model(tmp_path / "toy.safetensors")
    assert loaded.config == page["config"]
    assert isinstance(loaded.volume, page["DifferenceVolume"])


@pytest.mark.usefixtures("page")
def test_errors_list_the_toys_among_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"choose from .*gated_mean"):
        build_attention("none of these", 8)
    with pytest.raises(ValueError, match="has no option 'heads': choose from gates"):
        build_attention("gated_mean", 8, heads=2)
    with pytest.raises(ValueError, match=r"choose from .*difference"):
        build_model(PSMNetConfig(volume="none of these"))
    with pytest.raises(ValueError, match=r"choose from .*bilinear"):
        build_model(PSMNetConfig(head="none of these"))
    with pytest.raises(ValueError, match="archives"):
        build_dataset("none of these", tmp_path)


@pytest.mark.usefixtures("page")
def test_costs_of_the_toy_are_known():
    assert closed_form("gated_mean", (2, 4, 4), 8, gates=2).operations == (2 * 8 * 10 + 24) * 32


@pytest.mark.usefixtures("page")
def test_the_toy_dataset_is_built_by_name_and_recognised(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    disparity = np.eye(4, 6, dtype=np.float32)
    np.savez(tmp_path / "hall.npz", left=image, right=image, disparity=disparity)
    for name in ("archives", "auto"):
        (sample,) = build_dataset(name, tmp_path)
        assert sample.name == "hall"
        assert sample.valid.sum() == 4

import numpy as np
import pytest
import torch
from command_line import ROOT

import hubconf
from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.files import write_json
from ea_psmnet.models.config import PRESETS
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.models.weights import BUNDLED, save_model


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_an_entry(preset):
    entry = preset.replace("-", "_")
    model = torch.hub.load(str(ROOT), entry, source="local", pretrained=False)
    assert isinstance(model, PSMNet)
    assert model.config == PRESETS[preset]


@pytest.mark.parametrize("name", [path.stem for path in sorted(BUNDLED.glob("*.safetensors"))])
def test_bundled_weights_load_by_default(name):
    model = getattr(hubconf, name.replace("-", "_"))()
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_preset_without_weights():
    assert hubconf.psmnet().training
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        hubconf.psmnet(pretrained=True)


def test_matchers_take_any_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 37, 210, 3), dtype=np.uint8)
    assert hubconf.stereo_matcher()(*images).disparity.shape == (37, 210)
    save_model(
        tmp_path / "mine.safetensors", build_model(PSMNetConfig(max_disparity=32, width=0.25))
    )
    write_json(tmp_path / "mine.json", {"samples": 7})
    matcher = hubconf.from_pretrained(str(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    assert hubconf.from_pretrained(str(file)).card == matcher.card
    assert matcher.card == {"samples": 7}
    assert matcher(*images).disparity.shape == (37, 210)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        hubconf.from_pretrained("ea-light")

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ea_psmnet.files import write_json, write_text
from ea_psmnet.models.config import PSMNetConfig, preset, read_config
from ea_psmnet.training.config import TrainingConfig

CONFIG = PSMNetConfig(
    attention="efficient", attention_sites=("volume",), attention_options={"heads": 2}, width=0.5
)


def test_a_network_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "network.json", CONFIG.to_dict())
    assert read_config(tmp_path / "network.json") == CONFIG


def test_training_takes_a_preset_or_a_file(tmp_path):
    config = TrainingConfig(out=tmp_path, data="synthetic", preset="psmnet")
    assert config.base_network() == preset("psmnet")
    write_json(tmp_path / "network.json", CONFIG.to_dict())
    config = TrainingConfig(
        out=tmp_path, data="synthetic", preset="psmnet", network=tmp_path / "network.json"
    )
    assert config.base_network() == CONFIG


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", "null", "", "[" * 9999, '{"colour": 1}', '{"width": 0.3}', '{"width": "a"}'),
        *('{"width": 1000000}', '{"width": 1e999}', '{"width": NaN}', '{"width": null}'),
        *('{"max_disparity": 32.0}', '{"max_disparity": 1000000000000}', '{"attention": 5}'),
    ],
)
def test_what_is_no_network_is_told_with_its_file(tmp_path, text):
    write_text(tmp_path / "network.json", text)
    with pytest.raises(ValueError, match=r"json: .* does not describe a network$") as caught:
        read_config(tmp_path / "network.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_config(Path(tmp_path / "none.json"))


def test_whole_numbers_of_numpys_are_whole_numbers():
    given = PSMNetConfig(
        max_disparity=np.int64(96),
        peak_reach=np.uint8(2),
        attention="efficient",
        attention_sites=("encoder",),
        attention_options={"heads": np.int32(2)},
    )
    plain = replace(given, max_disparity=96, peak_reach=2, attention_options={"heads": 2})
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())
    with pytest.raises(ValueError, match=r"whole number, not .*96\.0"):
        PSMNetConfig(max_disparity=np.float64(96))

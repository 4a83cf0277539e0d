"""The options of every command: adding or removing one is a decision, to be made here, too."""

import re

import pytest

from ea_psmnet.__main__ import COMMANDS, GROUPS, main

NETWORK = "checkpoint max-disparity align-corners peak-reach attention device precision threads "
"""Options of a network."""
MATCHER = NETWORK + "two-scales "
"""Options of commands that predict."""
CALIBRATION = "calib raw focal baseline doffs cx cy "
"""Options that give the calibration of the camera."""

OPTIONS = {
    "predict": MATCHER
    + CALIBRATION
    + "out name force existing layout picture colours smooth quiet json write scale memory "
    "rectify clean min-depth max-depth min-confidence min-disparity range ",
    "doctor": CALIBRATION + "json max-disparity min-disparity scale ",
    "train": (
        "out threads data root mix render-pass augment preset network attention-sites "
        "normalisation imagenet init max-disparity crop scene-size batch "
        "micro-batch lr schedule milestones decay cross-entropy cross-entropy-target "
        "likelihood clip ema epochs steps precision checkpointing compile device workers "
        "save-every keep validate-every validate-data validate-root validate-count "
        "memory-check seed "
    ),
    "evaluate": (
        MATCHER
        + "root data split render-pass checkpoints method fill pad predictions protocols limit "
        "batch out confidence sheets error-maps worst report against "
    ),
    "export": (
        "out checkpoint format size precision max-disparity align-corners peak-reach attention "
        "root pairs force threads "
    ),
    "compare": (
        "variants presets checkpoints sites sizes batches width max-disparity root data "
        "budget device precision repeats timeout threads out "
    ),
    "ablate": (
        "threads out seeds variants sites preset width max-disparity crop init batch lr steps "
        "augment cross-entropy precision data root scenes test-scenes eval-roots device workers "
    ),
    "data check": "data max-disparity pairs whole workers out ",
    "data show": "out data split render-pass count augment seed size ",
    "data render": "out train test size max-disparity seed textures kind layout workers ",
    "app": "host port upload-limit ",
    "attention-maps": NETWORK + "site out pixel ",
    "resources": (
        "volumes channels key-channels mechanisms dtype limit preset size batch max-disparity "
        "sites out "
    ),
    "info": "json ",
    "submission": MATCHER + "root out method resolution partial scale memory ",
}


def test_every_command_is_listed():
    names = {name for name in COMMANDS if name not in GROUPS}
    names |= {f"{group} {name}" for group, commands in GROUPS.items() for name in commands}
    assert names == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    told = re.findall(r"^. --([a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(told) == sorted(OPTIONS[command].split())

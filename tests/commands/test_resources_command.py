"""`resources` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ea_psmnet.__main__ import main
from ea_psmnet.files import read_image

ROOT = Path(__file__).parents[2]


def test_volumes_as_table_json_and_plot(tmp_path, capsys):
    arguments = "resources --volumes 8x8 4x4x8 --channels 8 --mechanisms efficient dot_product"
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "resources.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "resources.json",
        "resources.md",
        "resources.png",
    }
    values = json.loads((tmp_path / "resources.json").read_text())
    assert set(values) == {"volumes"}
    rows = [(row["volume"], row["case"]) for row in values["volumes"]["rows"]]
    mechanisms = ("efficient", "dot_product")
    assert rows == [(volume, case) for volume in ("8x8", "4x4x8") for case in mechanisms]
    assert read_image(tmp_path / "resources.png").std() > 5


def test_a_network_and_no_volumes(tmp_path, capsys):
    arguments = "resources --preset nonlocal-psmnet --size 256 512 --sites bottleneck --batch 2"
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 0
    assert "hourglass3.bottleneck" in capsys.readouterr().out
    values = json.loads((tmp_path / "resources.json").read_text())
    assert set(values) == {"network"}
    site = values["network"]["sites"][0]
    assert site["size"] == [12, 16, 32]
    assert site["map_bytes"] == 2 * 4 * (12 * 16 * 32) ** 2
    assert not (tmp_path / "resources.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--volumes 64", "'64' is not a volume"),
        ("--mechanisms magic", "unknown mechanism 'magic': choose from"),
        ("--dtype int8", "unknown dtype 'int8'"),
        ("--limit 3", "write it as 11GiB"),
        ("--sites encoder", "--sites is for a network: name its --preset"),
        ("--batch 2 --volumes 4x4", "--batch is for a network"),
        ("--size 256 512", "--size is for a network"),
        ("--max-disparity 64", "--max-disparity is for a network"),
        ("--preset ea-psmnet --mechanisms hydra", "--mechanisms is for volumes: name them by"),
        ("--preset ea-psmnet --channels 32", "--channels is for volumes"),
        ("--preset ea-psmnet --key-channels 8", "--key-channels is for volumes"),
        ("--preset psmnet", "no attention"),
        ("--preset ea-psmnet --sites attic", "unknown attention site 'attic'"),
        ("--preset ea-psmnet --max-disparity 50", "try 64"),
        ("--preset ea-psmnet --batch 0", "batch is 0, expected 1 to 65536"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["resources", *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert message in error


def test_help_does_not_import_torch():
    code = """
import sys
from ea_psmnet.__main__ import main
try:
    main(["resources", "--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--volumes" in result.stdout
    assert result.stdout.split()[-1] == "False"

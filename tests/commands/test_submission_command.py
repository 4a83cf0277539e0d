import zipfile

import numpy as np
from made_pairs import write_noise_pair

from ea_psmnet.__main__ import main
from ea_psmnet.evaluation import submission

SIZE = (40, 72)


def write_scene(root):
    """The images of one of ETH3D's pairs."""
    scene = root / "two_view_testing" / "lakeside_1l"
    write_noise_pair(scene, np.random.default_rng(0), SIZE, 8)
    for view, name in (("left", "im0"), ("right", "im1")):
        (scene / f"{view}.png").rename(scene / f"{name}.png")


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_incomplete_benchmark_needs_consent(checkpoint, tmp_path, capsys):
    write_scene(tmp_path)
    out = tmp_path / "out.zip"
    command = ["submission", "eth3d", "--root", str(tmp_path), "--out", str(out)]
    command += ["--checkpoint", str(checkpoint)]
    assert main(command) == 2
    assert "found 1 of eth3d's 47 pairs" in capsys.readouterr().err
    assert not out.exists()
    calibration = tmp_path / "two_view_testing" / "lakeside_1l" / "calib.txt"
    calibration.write_text("ndisp=64\n")
    assert main([*command, "--partial"]) == 0
    assert zipfile.ZipFile(out).namelist() == [
        "low_res_two_view/lakeside_1l.pfm",
        "low_res_two_view/lakeside_1l.txt",
    ]
    told = capsys.readouterr()
    assert "1 pairs" in told.out
    assert "calib.txt states up to 64 disparities" in told.err


def test_parts_of_another_folder_are_refused(checkpoint, tmp_path, capsys, monkeypatch):
    for name in "ab":
        write_scene(tmp_path / name)
    command = ["submission", "eth3d", "--out", str(tmp_path / "out.zip"), "--partial"]
    command += ["--checkpoint", str(checkpoint)]
    with monkeypatch.context() as patch:
        patch.setattr(submission, "_pack", interrupted)
        assert main([*command, "--root", str(tmp_path / "a")]) == 130
    assert main([*command, "--root", str(tmp_path / "b")]) == 2
    assert "root" in capsys.readouterr().err

"""Where torchvision's readers go wrong, so that these stand beside them: on the same trees."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_trees import instereo2k, kitti2015, sceneflow, shade, truth

from ea_psmnet.datasets.instereo2k import InStereo2k
from ea_psmnet.datasets.kitti import Kitti2015
from ea_psmnet.datasets.sceneflow import SceneFlow
from ea_psmnet.files import write_pfm

readers = pytest.importorskip("torchvision.datasets")


def test_kitti_is_paired_by_name_not_by_order(tmp_path):
    kitti2015(tmp_path / "Kitti2015")
    ours, theirs = Kitti2015(tmp_path / "Kitti2015"), readers.Kitti2015Stereo(str(tmp_path))
    assert (len(ours), len(theirs)) == (2, 4)
    # Its second sample is the later moment of the first scene with the second scene's truth.
    image, disparity = theirs[1][0], theirs[1][2]
    assert np.asarray(image)[0, 0, 0] == shade(20)
    assert disparity.max() == truth(1)[1, 1]
    assert ours[1].left[0, 0, 0] == shade(1)
    assert ours[1].disparity.max() == truth(1)[1, 1]


def test_a_wrong_negative_disparity_stays_unknown(tmp_path):
    sceneflow(tmp_path / "SceneFlow")
    values = truth(0, unknown=-7)
    frame = SceneFlow(tmp_path).frames[0]
    write_pfm(frame.disparity, values)
    theirs = readers.SceneFlowStereo(str(tmp_path), variant="Monkaa")[0][2]
    assert theirs[0, 0, 0] == 7
    ours = SceneFlow(tmp_path)[0]
    assert not ours.valid[0, 0]
    assert ours.disparity[0, 0] == 0


def test_instereo2k_has_100_steps_a_pixel(tmp_path):
    instereo2k(tmp_path / "InStereo2K")
    for path in sorted((tmp_path / "InStereo2K/train").glob("*/*")):  # it knows no parts
        path.rename(tmp_path / "InStereo2K/train" / path.name)
    (root := tmp_path / "InStereo2k").symlink_to(tmp_path / "InStereo2K")
    theirs = readers.InStereo2k(str(tmp_path))[0][2]
    ours = InStereo2k(root)[0].disparity
    assert theirs.max() == pytest.approx(8.5 * 100 / 1024)
    assert ours.max() == 8.5

"""Faults that are put into pairs are named, and sound pairs raise no alarm."""

import re
import warnings

import cv2
import numpy as np
import pytest
from input_check import FAULTS, darker, residual, short_range, turned, unrelated
from stereo_pairs import textured_pair

from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.inference.doctor import diagnose, examined
from ea_psmnet.matches import FeatureMatches

REAL = ["kitti15_000000", "mb03_cones", "mb06_wood2_half", "newtsukuba_1"]
TRULY_WRONG = {"ntu_aug_1": ("exposure",), "ntu_aug_4": ("unrectified",)}
"""The right view is 1.9 times as bright; it is two rows lower, as the warp by the truth shows."""


@pytest.fixture(scope="module")
def sample():
    return textured_pair(240, 480)


@pytest.fixture(scope="module")
def pair(sample):
    return sample.left, sample.right


@pytest.fixture(scope="module")
def scenes():
    return list(SyntheticScenes(size=(256, 512), split="test", count=2, seed=3))


def finding(pair, *arguments, **options):
    """The only finding about a pair."""
    (found,) = diagnose(*pair, *arguments, **options).findings
    return found


def test_a_sound_pair_raises_no_alarm(pair):
    diagnosis = diagnose(*pair)
    assert diagnosis.codes == ()
    assert diagnosis.correction is None
    assert diagnosis.matches > 100


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(pair, name):
    fault = FAULTS[name]
    assert finding(fault.provoke(pair)).code == fault.code


@pytest.mark.parametrize(("degrees", "down"), [(0, 3), (0, -8), (0.5, 0), (-2, 4)])
def test_a_misalignment_is_measured_and_corrected(pair, degrees, down):
    wrong = pair[0], turned(pair[1], degrees, down)
    numbers = finding(wrong).numbers
    assert numbers["vertical_offset"] == pytest.approx(-down, abs=0.1)
    assert numbers["rotation"] == pytest.approx(degrees, abs=0.03)
    assert numbers["zoom"] == pytest.approx(1, abs=1e-3)
    correction = diagnose(*wrong).correction
    assert residual(wrong, correction) < 0.3
    assert diagnose(wrong[0], correction.apply(wrong[1])).codes == ()


def test_a_larger_right_image_is_measured(pair):
    matrix = cv2.getRotationMatrix2D((239.5, 119.5), 0, 1.03)
    larger = cv2.warpAffine(pair[1], matrix, (480, 240), borderMode=cv2.BORDER_REFLECT_101)
    found = finding((pair[0], larger))
    assert found.code == "unrectified"
    assert found.numbers["zoom"] == pytest.approx(1 / 1.03, abs=1e-3)


def test_offsets_below_the_threshold_are_no_fault(pair):
    assert diagnose(pair[0], turned(pair[1], 0.1, 1)).codes == ()


@pytest.mark.parametrize(("factor", "codes"), [(0.4, ["exposure"]), (0.8, [])])
def test_brightness_is_measured_where_both_images_see(pair, factor, codes):
    findings = diagnose(pair[0], darker(pair[1], factor)).findings
    assert [found.code for found in findings] == codes
    for found in findings:
        assert found.numbers["brightness_ratio"] == pytest.approx(factor, abs=0.02)


def test_swapped_images_are_named_where_any_disparity_is_searched(pair):
    assert diagnose(pair[1], pair[0], None).codes == ("swapped",)
    assert not diagnose(*pair, None).findings


def test_several_faults_are_all_named(pair):
    wrong = darker(pair[1], 0.4), turned(pair[0], 1)
    assert set(diagnose(*wrong).codes) == {"swapped", "unrectified", "exposure"}


def test_a_range_that_is_exceeded_names_a_remedy_that_works(sample, pair):
    reach = short_range(sample)  # about 9 px
    found = finding(pair, (0, reach))
    assert found.code == "range"
    assert reach < found.numbers["largest_disparity"] < sample.disparity.max() + 1
    option, scale = found.options
    assert option == "--scale"
    assert diagnose(*pair, (0, reach / float(scale))).codes == ()


@pytest.mark.parametrize(("least", "scale"), [(0, 0.75), (-40, 1), (-40, 0.75)])
def test_remedies_start_from_the_scale_and_the_range_as_they_are(sample, pair, least, scale):
    reach = short_range(sample)
    found = finding(pair, (least, reach), scale=scale)
    smaller = float(found.options[1])
    assert smaller < scale
    assert diagnose(*pair, (least, least + scale * (reach - least) / smaller)).codes == ()
    (count,) = re.findall(r"--max-disparity (\d+)", str(found))
    assert diagnose(*pair, (least, least + int(count) / scale)).codes == ()


def test_a_smallest_disparity_may_be_positive(pair):
    found = finding(pair, (40, 192))
    assert found.code == "negative"
    assert diagnose(*pair, (float(found.options[1]), 192)).codes == ()
    assert "toed in" not in str(found)
    assert finding(pair, (4000, 4192)).options == found.options


def test_negative_disparities_are_told_unless_they_are_searched(pair):
    width = pair[0].shape[1] - 15
    shifted = pair[0][:, :width], np.roll(pair[1], 15, axis=1)[:, :width]
    found = finding(shifted)
    assert found.code == "negative"
    assert found.numbers["smallest_disparity"] == pytest.approx(5 - 15, abs=1.5)
    option, least = found.options
    assert option == "--min-disparity"
    assert diagnose(*shifted, (float(least), 192)).codes == ()


def test_a_calibration_by_which_matches_are_behind_the_camera_is_doubted(pair):
    assert diagnose(*pair, doffs=10).codes == ()
    assert finding(pair, doffs=-20).code == "calibration"


def test_other_images_are_unrelated(pair):
    upside_down = np.ascontiguousarray(pair[1][::-1])  # a mirror image has other features
    assert finding((pair[0], upside_down)).code == "unrelated"


def test_row_differences_that_depend_on_depth_are_not_corrected(pair, monkeypatch):
    """Cameras above each other: an epipolar geometry, but no alignment of rows."""
    rng = np.random.default_rng(0)
    left = rng.uniform((0, 0), (480, 240), (300, 2)).astype(np.float32)
    right = left - np.stack([0 * left[:, 0], rng.uniform(5, 60, 300).astype(np.float32)], 1)
    found = FeatureMatches(left, right, (800, 800))
    monkeypatch.setattr("ea_psmnet.inference.doctor.match_features", lambda *_: found)
    diagnosis = diagnose(*pair)
    assert diagnosis.codes == ("unrectified",)
    assert diagnosis.correction is None
    differences = diagnosis.findings[0].numbers["row_difference"]
    assert differences == pytest.approx(np.median(left - right, 0)[1], abs=1)


def test_warnings_name_faults_and_the_correction_is_applied_only_if_asked(pair):
    wrong = pair[0], turned(pair[1], 1)
    with pytest.warns(UserWarning, match="--rectify auto") as told:
        assert examined(wrong, (0, 192))[1] is wrong[1]
    assert len(told) == 1
    with pytest.warns(UserWarning, match="turned by .*corrected"):
        left, right = examined(wrong, (0, 192), rectify=True)
    assert left is wrong[0]
    assert diagnose(left, right).codes == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert examined(pair, (0, 192), rectify=True) is pair


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (16, 16)])
def test_the_smallest_images_are_examined(size):
    rng = np.random.default_rng(0)
    tiny = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    assert diagnose(*tiny).codes == ()
    assert diagnose(tiny[0], tiny[0]).codes == ("identical",)


# Rendered and real pairs --------------------------------------------------------------------------


def check_faults(samples):
    """Every other fault in a pair, and the others in the next."""
    for number, sample in enumerate(samples):
        pair = sample.left, sample.right
        assert diagnose(*pair).codes == (), sample.name
        for name, fault in list(FAULTS.items())[number % 2 :: 2]:
            wrong = fault.provoke(pair)
            diagnosis = diagnose(*wrong)
            assert diagnosis.codes == (fault.code,), (sample.name, name)
            if fault.code == "unrectified":
                assert residual(wrong, diagnosis.correction) < 0.3, (sample.name, name)
        assert diagnose(*pair, (0, short_range(sample))).codes == ("range",), sample.name
        other = samples[number - 1]
        strange = unrelated(pair, (other.left, other.right))
        assert diagnose(*strange).codes == ("unrelated",), sample.name


@pytest.mark.slow
def test_faults_of_rendered_scenes(scenes):
    check_faults(scenes)


@pytest.mark.slow
def test_faults_of_real_pairs(shared_data):
    check_faults([PairFolder(shared_data / "stereo" / name)[0] for name in REAL])


@pytest.mark.slow
def test_real_pairs_raise_no_false_alarm(shared_data):
    found = {s.name: diagnose(s.left, s.right).codes for s in PairFolder(shared_data / "stereo")}
    assert {name: codes for name, codes in found.items() if codes} == TRULY_WRONG

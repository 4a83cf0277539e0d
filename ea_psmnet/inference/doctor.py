"""Examination of an input pair for faults that would make its prediction wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.inference.alignment import RowAlignment, RowFit, fit_rows
from ea_psmnet.inference.pairs import Pair
from ea_psmnet.matches import FeatureMatches, match_features

Code = Literal[
    "identical",
    "no-texture",
    "unrelated",
    "unrectified",
    "swapped",
    "exposure",
    "range",
    "negative",
    "calibration",
]
"""What is wrong. `docs/input-check.md` explains each."""

_PIXELS = 160_000
"""Size at which features are matched, to limit the time."""
_FEATURES = 800
_ENOUGH = 20
"""Smallest number of matches to draw conclusions from."""

_SAME = 0.5
"""Largest offset, in pixels, of eight of ten matches in two copies of an image."""
_CONTRAST = 2.0
"""Smallest local standard deviation of texture, in grey levels after smoothing."""
_PLAIN = 0.05
"""Largest share of textured pixels in an image that has almost no texture."""
_MANY = 100
"""Smallest number of features of an image that could be matched."""
_AGREEING = 0.5
"""Smallest share of matches that agree with one alignment of the rows."""

_OFFSET, _ROTATION, _ZOOM = 1.5, 0.3, 0.01
"""Smallest row offset in pixels, rotation in degrees and relative difference in size of pairs that
are not rectified; benchmarks' pairs have up to 0.7 pixels, 0.07 degrees and 0.002."""
_BLURRED = 0.3
"""Smallest row offset at the size at which features are matched."""
_CERTAIN = 6
"""Smallest ratio of a value to its standard error."""
_BRIGHTER = 1.6
"""Smallest ratio of brightness, two thirds of an aperture stop."""

_NEIGHBOURS, _ALLIES = 5, 2
_ALIKE = 0.02
"""Largest difference of similar disparities, over the image's width."""

_BEYOND, _BELOW = 0.03, 0.05
"""Smallest share of matches above, or below, the range of disparities."""
_TOED = 0.25
"""Furthest plausible match below the range, over the image's width: things that exist twice match
anywhere."""
_CLUSTER = 8
"""Smallest number of such matches."""
_IMPLAUSIBLE = 0.1
"""Smallest share of matches beyond infinity that contradicts a calibration."""
_NONE_RIGHT = 0.05
"""Largest share of matches with positive disparity in a swapped pair."""
_SCALES = (0.75, 0.5, 0.25)
_MARGIN = 1.1
"""Range to search over the largest disparity matched: some of the scene may be nearer."""


@dataclass(frozen=True)
class Finding:
    """A fault of a pair."""

    code: Code
    message: str
    """One line for people, with the numbers."""
    remedy: str
    """What to do."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    """Options of `predict` that remedy the fault, if there are any."""

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """Result of examining a pair."""

    findings: tuple[Finding, ...]
    matches: int
    """Number of matched features whose rows agree."""
    correction: RowAlignment | None = None
    """What to apply to the right image if the pair is not rectified, and this remedies it."""

    @property
    def codes(self) -> tuple[Code, ...]:
        """Codes of the findings."""
        return tuple(finding.code for finding in self.findings)


def examined(
    pair: Pair,
    searched: tuple[float, float] | None,
    *,
    scale: float = 1,
    doffs: float = 0,
    rectify: bool = False,
) -> Pair:
    """Warn of the faults of a pair; with `rectify`, correct the right image if that is possible.

    The other arguments are those of `diagnose`.
    """
    diagnosis = diagnose(*pair, searched, scale=scale, doffs=doffs)
    correction = diagnosis.correction if rectify else None
    for finding in diagnosis.findings:
        corrected = correction is not None and finding.code == "unrectified"
        told = f"{finding.message}: corrected, as asked" if corrected else str(finding)
        warnings.warn(told, stacklevel=2)
    return pair if correction is None else (pair[0], correction.apply(pair[1]))


@dataclass(frozen=True, eq=False)
class _Evidence:
    """A pair at the size at which its features are matched."""

    left: NDArray[np.uint8]
    """(h, w) grey."""
    right: NDArray[np.uint8]
    scale: tuple[float, float]
    """Factors from the pair's own width and height to `w` and `h`."""
    matches: FeatureMatches
    fit: RowFit | None

    @property
    def trusted(self) -> bool:
        """Whether matches agree with an alignment of the rows."""
        if self.fit is None:
            return False
        agreeing = int(self.fit.agreeing.sum())
        return agreeing >= max(_ENOUGH, _AGREEING * len(self.fit.agreeing))


def diagnose(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    searched: tuple[float, float] | None = (0, 192),
    *,
    scale: float = 1,
    doffs: float = 0,
) -> Diagnosis:
    """Examine a pair by matched features; only certain faults are reported.

    Args:
        left: (H, W, 3) uint8 RGB.
        right: (H, W, 3) uint8 RGB.
        searched: Smallest and largest disparity that will be searched, in pixels of these images;
            None if the range will be fitted to the pair.
        scale: Factor on the size at which the pair will be predicted.
        doffs: What the calibration adds to disparities: negated, the disparity at infinity.
    """
    evidence = _gather((left, right))
    if (finding := _without_matches(evidence, left, right)) is not None:
        return Diagnosis((finding,), 0)
    if evidence.fit is None or not evidence.trusted:
        general = _other_geometry(evidence)
        return Diagnosis(() if general is None else (general,), 0)
    small = evidence.fit.alignment
    alignment = replace(small, offset=small.offset / evidence.scale[1])
    findings = [*_unrectified(alignment, evidence)]
    correction = alignment if findings else None
    disparities = _disparities(evidence)
    findings += [
        *_exposure(evidence),
        *_directions(disparities, searched, scale, left.shape[1]),
        *_behind(disparities, doffs),
    ]
    return Diagnosis(tuple(findings), len(disparities), correction)


def _gather(pair: Pair) -> _Evidence:
    views = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in pair]
    height, width = views[0].shape
    factor = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    left, right = (
        np.asarray(cv2.resize(view, size, interpolation=cv2.INTER_AREA), np.uint8) for view in views
    )
    matches = match_features(_stretched(left), _stretched(right), _FEATURES)
    fit = fit_rows(matches.left.astype(np.float64), matches.right.astype(np.float64), *size)
    return _Evidence(left, right, (size[0] / width, size[1] / height), matches, fit)


def _stretched(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full contrast, so that a dark image has the features of a bright one."""
    low, high = np.percentile(view, (1, 99))
    gain = 255 / max(high - low, 16)
    return np.clip((view.astype(np.float32) - low) * gain, 0, 255).astype(np.uint8)


# Pairs that cannot be compared --------------------------------------------------------------------


def _without_matches(
    evidence: _Evidence, left: NDArray[np.uint8], right: NDArray[np.uint8]
) -> Finding | None:
    if np.array_equal(left, right) or _is_copy(evidence):
        told = "left and right are the same image"
        return Finding("identical", told, "give the images of two cameras")
    if evidence.trusted:
        return None
    shares = {"left": _textured(evidence.left), "right": _textured(evidence.right)}
    plain = [side for side, share in shares.items() if share < _PLAIN]
    if plain:
        return Finding(
            "no-texture",
            f"almost no texture in the {' and the '.join(plain)} image "
            f"({min(shares.values()):.1%} of the pixels), so that there is little to match",
            "light the scene, project a pattern on it, or check that no lens is covered",
            {f"{side}_textured": share for side, share in shares.items()},
        )
    return None


def _is_copy(evidence: _Evidence) -> bool:
    if evidence.fit is None or not evidence.trusted:
        return False
    offsets = (evidence.matches.left - evidence.matches.right)[evidence.fit.agreeing]
    return bool(np.mean(np.abs(offsets).max(1) < _SAME) > 0.8)


def _textured(view: NDArray[np.uint8]) -> float:
    """Share of pixels whose surroundings have texture that is not noise."""
    smooth = cv2.GaussianBlur(view.astype(np.float32), (0, 0), 1.5)
    mean = cv2.blur(smooth, (9, 9))
    variance = cv2.blur(smooth * smooth, (9, 9)) - mean * mean
    return float(np.mean(variance > _CONTRAST**2))


def _other_geometry(evidence: _Evidence) -> Finding | None:
    """A finding about views whose rows no alignment explains, of one scene or of two."""
    matches = evidence.matches
    if min(matches.features) < _MANY:
        return None
    epipolar = _epipolar(matches)
    if epipolar.sum() >= max(_ENOUGH, _AGREEING * len(epipolar)):
        offsets = np.abs(matches.left - matches.right)[epipolar, 1] / evidence.scale[1]
        offset = float(np.median(offsets))
        return Finding(
            "unrectified",
            f"the pair is not rectified: rows differ by {offset:.1f} px in the median of "
            f"{len(offsets)} matches, in a way that no shift or rotation corrects",
            "calibrate the cameras and rectify their images",
            {"row_difference": offset},
        )
    return Finding(
        "unrelated",
        f"the images do not belong together: of {matches.features[0]} and {matches.features[1]} "
        f"features only {len(matches.left)} look alike, and those are not in the same rows",
        "give two images that show the same scene at the same time",
        {
            "features_left": matches.features[0],
            "features_right": matches.features[1],
            "matches": len(matches.left),
        },
    )


def _epipolar(matches: FeatureMatches) -> NDArray[np.bool_]:
    """(N,) matches that agree with one epipolar geometry."""
    chosen = None
    if len(matches.left) >= _ENOUGH:
        _, chosen = cv2.findFundamentalMat(matches.left, matches.right, cv2.USAC_MAGSAC, 1.0, 0.999)
    if chosen is None:
        return np.zeros(len(matches.left), np.bool_)
    return np.asarray(chosen.ravel() > 0)


# Pairs with matches -------------------------------------------------------------------------------


def _unrectified(alignment: RowAlignment, evidence: _Evidence) -> Iterator[Finding]:
    assert evidence.fit is not None
    small, errors = evidence.fit.alignment, evidence.fit.errors
    wrong = []
    if _is_certain(small.offset, errors.offset, max(_OFFSET * evidence.scale[1], _BLURRED)):
        place = "higher" if alignment.offset > 0 else "lower"
        wrong.append(f"lies {abs(alignment.offset):.1f} px {place}")
    if _is_certain(small.rotation, errors.rotation, _ROTATION):
        sense = "counter-clockwise" if small.rotation > 0 else "clockwise"
        wrong.append(f"is turned by {abs(small.rotation):.2f} degrees {sense}")
    if _is_certain(small.zoom - 1, errors.zoom, _ZOOM):
        wrong.append(
            f"is {abs(1 / small.zoom - 1):.1%} {'smaller' if small.zoom > 1 else 'larger'}"
        )
    if wrong:
        yield Finding(
            "unrectified",
            f"the pair is not rectified: the right image {' and '.join(wrong)}",
            "calibrate the cameras and rectify their images, or correct this by --rectify auto",
            {
                "vertical_offset": alignment.offset,
                "rotation": alignment.rotation,
                "zoom": alignment.zoom,
            },
            ("--rectify", "auto"),
        )


def _is_certain(value: float, error: float, least: float) -> bool:
    return abs(value) > max(least, _CERTAIN * error)


def _disparities(evidence: _Evidence) -> NDArray[np.float64]:
    """Disparities of matches after the correction, in pixels of the pair."""
    assert evidence.fit is not None
    agreeing, size = evidence.fit.agreeing, evidence.left.shape[::-1]
    left = evidence.matches.left[agreeing]
    right = evidence.fit.alignment.moved(evidence.matches.right[agreeing], *size)
    disparities = left[:, 0] - right[:, 0]
    return disparities[_supported(left, disparities, _ALIKE * size[0])] / evidence.scale[0]


def _supported(
    places: NDArray[np.float32], disparities: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """(N,) matches whose disparity is similar to that of two of the five matches nearest to them.

    Repeated patterns match far away in the same row, each at its own disparity.
    """
    distances = np.square(places[:, None] - places).sum(-1)  # (N, N)
    nearest = np.argpartition(distances, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]  # and itself
    alike = np.abs(disparities[nearest] - disparities[:, None]) < tolerance
    return alike.sum(1) > _ALLIES


def _exposure(evidence: _Evidence) -> Iterator[Finding]:
    """Compare the brightness around matches, so that what only one view shows does not count."""
    assert evidence.fit is not None
    pair = zip(
        (evidence.left, evidence.right),
        (evidence.matches.left, evidence.matches.right),
        strict=True,
    )
    bright = [
        _values(np.asarray(cv2.GaussianBlur(view, (0, 0), 3)), places[evidence.fit.agreeing])
        for view, places in pair
    ]
    ratio = float(np.exp(np.median(np.log((bright[1] + 1) / (bright[0] + 1)))))
    if not 1 / _BRIGHTER < ratio < _BRIGHTER:
        yield Finding(
            "exposure",
            f"the exposure differs: the right image is {ratio:.2f} times as bright as the left",
            "use the same exposure and gain for both cameras",
            {"brightness_ratio": ratio},
        )


def _values(view: NDArray[Any], places: NDArray[np.float32]) -> NDArray[np.float64]:
    x, y = np.rint(places).astype(int).T
    last_row, last_column = view.shape[0] - 1, view.shape[1] - 1
    return view[np.clip(y, 0, last_row), np.clip(x, 0, last_column)].astype(np.float64)


def _directions(
    disparities: NDArray[np.float64],
    searched: tuple[float, float] | None,
    scale: float,
    width: int,
) -> Iterator[Finding]:
    """Findings about the signs of disparities and their range."""
    positive, negative = (float(np.mean(sign * disparities > 1)) for sign in (1, -1))
    expected = searched is None or searched[0] >= 0
    if expected and positive < _NONE_RIGHT and negative > 0.5:
        median = float(np.median(disparities))
        yield Finding(
            "swapped",
            f"left and right are swapped: {negative:.0%} of {len(disparities)} matches lie further "
            f"right in the right image, by {-median:.1f} px in the median",
            "give the images in the other order, or, if the cameras are toed in, --min-disparity",
            {"share": negative, "median_disparity": median},
        )
    elif searched is not None:
        least, reach = searched[0], min(searched[1], width)
        plausible = disparities > min(least, 0) - _TOED * width
        if _many(plausible & (disparities < least - 1), _BELOW):
            yield _too_far(disparities[plausible], least)
        if _many(disparities > reach, _BEYOND):
            yield _too_near(disparities, least, searched[1], scale, reach)


def _behind(disparities: NDArray[np.float64], doffs: float) -> Iterator[Finding]:
    """A finding about a calibration that puts much of the scene beyond infinity."""
    share = float(np.mean(disparities + doffs < -1))
    if doffs and share > _IMPLAUSIBLE:
        yield Finding(
            "calibration",
            f"with doffs = {doffs:g} px of the calibration {share:.0%} of the matches have no "
            "positive depth",
            "give the calibration of these images, and check the sign of doffs",
            {"doffs": doffs, "share": share},
        )


def _many(those: NDArray[np.bool_], share: float) -> bool:
    return bool(those.sum() >= _CLUSTER and those.mean() >= share)


def _too_far(disparities: NDArray[np.float64], least: float) -> Finding:
    share, lowest = float(np.mean(disparities < least - 1)), float(np.percentile(disparities, 1))
    lower = int((lowest - (_MARGIN - 1) * abs(lowest)) // 4 * 4)
    why = ": the cameras are toed in, or the images cropped" if lowest < 0 else ""
    return Finding(
        "negative",
        f"{share:.0%} of the matches have disparities below {least:.0f} px, the smallest that is "
        f"searched, down to {lowest:.0f} px{why}",
        f"predict with --min-disparity {lower}"
        + (", or rectify the pair to parallel cameras" if why else ""),
        {"share": share, "smallest_disparity": lowest, "least": least},
        ("--min-disparity", str(lower)),
    )


def _too_near(
    disparities: NDArray[np.float64], least: float, last: float, scale: float, reach: float
) -> Finding:
    """The finding, with remedies.

    Args:
        disparities: (N,) in pixels of the pair.
        least: Smallest disparity that is searched.
        last: Largest disparity that the network searches at this scale.
        scale: Factor on the size at which the pair is predicted.
        reach: Largest disparity that images of this width have.
    """
    share, most = float(np.mean(disparities > reach)), float(np.percentile(disparities, 99))
    need = _MARGIN * most
    count = scale * (last - least)
    smaller = next((s for s in _SCALES if least + count / s >= need), _SCALES[-1])
    wider = math.ceil(scale * (need - least) / 16) * 16
    return Finding(
        "range",
        f"{share:.0%} of the matches have disparities beyond the {reach:.0f} px that are searched, "
        f"up to {most:.0f} px",
        f"predict with --scale {smaller:g}, or with --max-disparity {wider}",
        {"share": share, "largest_disparity": most, "reach": reach},
        ("--scale", f"{smaller:g}"),
    )

"""`doctor`: what is wrong with an input pair."""

from __future__ import annotations

import json as json_format
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ea_psmnet.commands.options import CalibrationOptions

if TYPE_CHECKING:
    from ea_psmnet.inference.doctor import Diagnosis, Finding

__all__ = ["doctor"]


def doctor(
    left: tyro.conf.Positional[Path],
    right: tyro.conf.Positional[Path],
    *,
    json: bool = False,
    max_disparity: int = 192,
    min_disparity: int = 0,
    scale: float = 1,
    calibration: Annotated[CalibrationOptions, tyro.conf.arg(name="")] = CalibrationOptions(),
) -> int:
    """Tell what is wrong with a pair before it is predicted: one line a fault, and what to do.

    Features of both images are matched. Reported are, when certain: swapped, unrectified, unrelated
    or identical images, differing exposure, almost no texture, disparities outside of the range
    that is searched, and a calibration that does not fit. Exit codes: 0 nothing is wrong; 1
    something is wrong; 2 there is no such pair.

    Args:
        left: Left image: PNG, JPEG, WebP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        json: Print a JSON object instead: paths, findings with code and numbers, and options of
            `predict` that help.
        max_disparity: Number of disparities that the network searches, in pixels.
        min_disparity: Smallest disparity that is searched.
        scale: Scale at which the pair will be predicted.
        calibration: Calibration of the camera.
    """
    from ea_psmnet.files import printable
    from ea_psmnet.inference.doctor import Finding, diagnose
    from ea_psmnet.inference.pairs import as_pair, calibrated_pair

    if max_disparity < 1 or not scale > 0:
        raise ValueError(
            f"--max-disparity {max_disparity} and --scale {scale:g}: expected more than 0"
        )
    views = as_pair((left, right))
    given = calibration.load(left, *views[0].shape[:2])
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        views, camera = calibrated_pair(views, given)
    doffs = 0 if camera is None else camera.doffs
    diagnosis = diagnose(
        *views,
        (min_disparity + max_disparity) / scale,
        least=min_disparity / scale,
        doffs=doffs,
    )
    about = "check the calibration"
    findings = [Finding("calibration", str(doubt.message), about) for doubt in doubts]
    findings += diagnosis.findings
    if json:
        paths = {"left": printable(left), "right": printable(right)}
        print(json_format.dumps(paths | _record(findings, diagnosis), indent=2))
    else:
        lines = [f"{finding.code}: {finding}" for finding in findings]
        print("\n".join(lines or [f"nothing found; {diagnosis.matches} features match"]))
    return 1 if findings else 0


def _record(findings: list[Finding], diagnosis: Diagnosis) -> dict[str, Any]:
    options = dict.fromkeys(finding.options for finding in findings if finding.options)
    return {
        "matches": diagnosis.matches,
        "findings": [asdict(finding) for finding in findings],
        "options": [word for option in options for word in option],
    }

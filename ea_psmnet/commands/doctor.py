"""`doctor`: faults of an input pair."""

from __future__ import annotations

import json as json_format
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from ea_psmnet.commands.options import CalibrationOptions


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
    """Report what is wrong with a pair before it is predicted: one line per fault, with a remedy.

    Features of both images are matched. Certain faults are reported: swapped, unrectified,
    unrelated or identical images, differing exposure, almost no texture, disparities outside the
    search range, and a calibration that does not fit. Exit codes: 0 nothing is wrong; 1 something
    is wrong; 2 there is no such pair.

    Args:
        left: Left image: PNG, JPEG, WebP, TIFF, PGM, PPM or BMP; colour or grey, 8 or 16 bits.
        right: Right image, of the same size.
        json: Print a JSON object instead: paths, findings with code and numbers, and options of
            `predict` that help.
        max_disparity: Number of disparities that the network searches, in pixels.
        min_disparity: Smallest disparity to search, in pixels.
        scale: Scale at which the pair will be predicted.
        calibration: Calibration of the camera.
    """
    from ea_psmnet.files import printable
    from ea_psmnet.inference.doctor import Diagnosis, Finding, diagnose
    from ea_psmnet.inference.pairs import as_pair, calibrated_pair, check_scale

    if max_disparity < 1:
        raise ValueError(f"--max-disparity {max_disparity}: expected more than 0")
    check_scale(scale)
    pair = as_pair((left, right))
    given = calibration.load(left, *pair[0].shape[:2])
    searched = min_disparity, min_disparity + max_disparity / scale
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pair, camera = calibrated_pair(pair, given)
        except ValueError as error:  # the pair cannot be rectified, so there is nothing to examine
            doubts, diagnosis = [str(error)], Diagnosis((), 0)
        else:
            doubts = [str(warning.message) for warning in caught]
            doffs = 0 if camera is None else camera.doffs
            diagnosis = diagnose(*pair, searched, scale=scale, doffs=doffs)
    findings = [
        Finding("calibration", doubt.removeprefix("calibration: "), "check the calibration")
        for doubt in doubts
    ]
    findings += diagnosis.findings
    if json:
        options = dict.fromkeys(finding.options for finding in findings)
        record = {
            "left": printable(left),
            "right": printable(right),
            "matches": diagnosis.matches,
            "findings": [asdict(finding) for finding in findings],
            "options": [word for words in options for word in words],
        }
        print(json_format.dumps(record, indent=2))
    else:
        lines = [f"{finding.code}: {finding}" for finding in findings]
        print("\n".join(lines or [f"nothing found; {diagnosis.matches} features match"]))
    return 1 if findings else 0

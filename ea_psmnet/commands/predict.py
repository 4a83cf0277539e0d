"""`predict`: from images and videos to disparity files."""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ea_psmnet.commands.options import CalibrationOptions, MatcherOptions
from ea_psmnet.commands.predicting import PairPredictor, PredictionOptions

if TYPE_CHECKING:
    from ea_psmnet.commands.predicting import Prepared
    from ea_psmnet.inference.inputs import PairSource
    from ea_psmnet.inference.many import Outcome, Work
    from ea_psmnet.inference.prediction_files import PairRecord
    from ea_psmnet.inference.result import StereoResult
    from ea_psmnet.inference.video import StereoVideo, VideoFrame

Existing = Literal["overwrite", "skip", "refuse"]
_SOME_FAILED = 1
"""Exit code if some of several pairs failed."""


def predict(
    inputs: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path,
    name: str | None = None,
    force: bool = False,
    existing: Existing = "overwrite",
    layout: Literal["separate", "side-by-side", "top-bottom"] = "separate",
    picture: Literal["beside", "disparity", "none"] = "beside",
    smooth: float = 0,
    quiet: bool = False,
    json: bool = False,
    what: Annotated[PredictionOptions, tyro.conf.arg(name="")] = PredictionOptions(),
    calibration: Annotated[CalibrationOptions, tyro.conf.arg(name="")] = CalibrationOptions(),
    options: Annotated[MatcherOptions, tyro.conf.arg(name="")] = MatcherOptions(),
) -> int:
    """Predict the disparity of rectified pairs.

    Writes NAME_disparity.pfm (float32 pixels), NAME_disparity.png (16 bits, pixels times 256, as
    in KITTI), NAME_preview.png for viewing, and NAME_pair.json with the input images. --write
    chooses among these and other outputs. Warnings name faults of the pair, as `doctor` finds them.
    A video has the files of its frames in a folder, and NAME_preview.mp4 and NAME_preview.json with
    the range of colours and the flicker.

    Exit codes: 0 all done; 1 some of several pairs failed, which are listed at the end; 2 wrong
    input or options, or no memory; 130 and 143 ended by Ctrl-C and SIGTERM.

    Args:
        inputs: LEFT and RIGHT: two images, two folders, two quoted patterns or two videos; a folder
            of pairs; a list (.txt, .csv) with LEFT RIGHT on each line; or with --layout images,
            folders or a video that show both views. Images are PNG, JPEG, WebP, TIFF, PGM, PPM or
            BMP, in colour or grey, with 8 or 16 bits.
        out: Folder for the results.
        name: Prefix of the names of the results of one pair or video; default: the common part of
            the images' names, or the name of their folder.
        force: Overwrite the results of another pair.
        existing: What to do with existing results of a pair: overwrite them, skip pairs with
            results of the same images and settings, to continue after an interruption, or refuse.
        layout: Place of the views of a pair: two files, or beside or above each other in one.
        picture: Content of the preview: the left image beside the disparity, only the disparity, or
            none.
        smooth: Strength, from 0 to below 1, of an average over time in the preview of a video,
            where the image does not change.
        quiet: Print neither paths nor progress.
        json: Print a line of JSON for each pair instead of its paths: name, status, paths, seconds,
            disparity (smallest and largest), warnings and error.
        what: What is predicted.
        calibration: Calibration of the camera.
        options: Network that predicts, and its options.
    """
    from ea_psmnet.inference.inputs import find_pairs
    from ea_psmnet.inference.video import Smoothing, StereoVideo, is_video

    _check_options(out, name)
    Smoothing(smooth)
    if picture == "none":
        what = replace(what, write=tuple(each for each in what.write if each != "preview"))
    predictor = PairPredictor(what, calibration, options)
    report = _Report(quiet=quiet, as_json=json)
    if inputs and all(map(is_video, inputs)):
        files = _Files(out, predictor, existing, force=force, beside=picture == "beside")
        video = StereoVideo(inputs, layout)
        _ = predictor.matcher  # its errors are not those of a frame
        return _predict_video(video, name or video.name, files, report, smooth)
    found = find_pairs(inputs, layout)
    pairs = found.pairs
    if name is not None:
        if len(pairs) > 1:
            raise ValueError(f"--name is for one pair, and these are {len(pairs)}")
        pairs = [replace(pairs[0], name=name)]
    if len(pairs) > 1:
        _ = predictor.matcher  # its errors are not those of a pair
    for path in found.alone:
        report.alone(path)
    return report.run(
        pairs, pair_files(out, predictor, existing, force=force, beside=picture == "beside")
    )


def _check_options(out: Path, name: str | None) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file: --out takes a folder")
    if name is not None and (Path(name).name != name or not name.strip(".")):
        raise ValueError(f"'{name}' is not a valid --name: it is a prefix of file names in --out")


def pair_files(
    out: Path,
    predictor: PairPredictor,
    existing: Existing = "overwrite",
    *,
    force: bool = False,
    beside: bool = True,
) -> Work:
    """The steps from pairs of images to results in a folder; options are those of `predict`."""
    files = _Files(out, predictor, existing, force=force, beside=beside)
    return files.work(
        lambda pair: predictor.prepare(pair.read(), pair.left), lambda pair: pair.record()
    )


class _Files:
    """The folder of results, and the treatment of existing ones."""

    def __init__(
        self, out: Path, predictor: PairPredictor, existing: Existing, *, force: bool, beside: bool
    ) -> None:
        self.out, self.predictor, self.beside = out, predictor, beside
        self._existing, self._force = existing, force
        self.outputs: Sequence[str] = predictor.what.write
        picture = {"picture": "beside" if beside else "alone"}
        self.settings: dict[str, str] = predictor.settings | picture
        """Everything that results depend on besides the images."""

    def work(self, read: Callable[..., Prepared], record: Callable[..., PairRecord]) -> Work:
        """The steps for pairs that `read` reads and `record` describes."""
        from ea_psmnet.inference.inputs import PairSource
        from ea_psmnet.inference.many import Work

        records: dict[str, PairRecord] = {}

        def done(pair: PairSource | VideoFrame) -> list[Path]:
            records[pair.name] = record(pair) | {"settings": self.settings}
            inputs = (pair.left, pair.right) if isinstance(pair, PairSource) else ()
            return self._kept(pair.name, records[pair.name], inputs)

        def predict(pair: PairSource | VideoFrame, prepared: Prepared) -> StereoResult:
            return self.predictor.predict(prepared)

        def write(
            pair: PairSource | VideoFrame, prepared: Prepared, result: StereoResult
        ) -> list[Path]:
            return self._write(pair.name, result, records.pop(pair.name))

        return Work(done, read, predict, write)

    def _kept(self, name: str, record: PairRecord, inputs: Sequence[Path]) -> list[Path]:
        """Existing results to keep; raises an error if others, or inputs, would be overwritten."""
        from ea_psmnet.inference.prediction_files import (
            check_unclaimed,
            prediction_paths,
            written_before,
        )

        folder, base = _placed(self.out, name)
        there = [path for path in prediction_paths(folder, base, self.outputs) if path.exists()]
        _spare(there, (*inputs, *(self.predictor.calibration.calib or ())))
        if self._existing == "skip" and (
            kept := written_before(folder, base, record, self.outputs)
        ):
            return kept
        if self._existing == "refuse" and there:
            raise FileExistsError(
                f"{there[0]}: exists: give another --out, or --existing skip or overwrite"
            )
        if not self._force:
            check_unclaimed(folder, base, record)
        return []

    def keeps_video(self, path: Path, record: Mapping[str, Any], inputs: Sequence[Path]) -> bool:
        """Whether the video of a disparity is there already, of the same record.

        Raises:
            FileExistsError: Another file must not be overwritten.
            ValueError: The file is an input, or OpenCV cannot write it.
        """
        from ea_psmnet.inference.prediction_files import is_same_pair
        from ea_psmnet.inference.video import name_for_opencv
        from ea_psmnet.records import read_record

        name_for_opencv(path)
        if not path.exists():
            return False
        _spare([path], inputs)
        if self._existing == "refuse":
            raise FileExistsError(f"{path}: exists: give another --out, or --existing overwrite")
        try:
            known = read_record(path.with_suffix(".json"), dict[str, Any])
        except (OSError, ValueError):
            known = {}
        if not self._force and not is_same_pair(record["inputs"], known.get("inputs", {})):
            raise FileExistsError(
                f"{path}: exists and is not of this video: give another --name or --out, or "
                "--force to overwrite it"
            )
        return self._existing == "skip" and known.items() >= record.items()

    def _write(self, name: str, result: StereoResult, record: PairRecord) -> list[Path]:
        from ea_psmnet.inference.prediction_files import write_prediction

        folder, base = _placed(self.out, name)
        return write_prediction(
            folder, base, result, record, self.outputs, self.predictor.what.cloud,
            beside=self.beside, colours=self.predictor.what.colours,
        )  # fmt: skip


def _spare(paths: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise a ValueError if one of some existing files is an input."""
    from ea_psmnet.files import printable

    for path in paths:
        if any(each.exists() and path.samefile(each) for each in inputs):
            raise ValueError(f"{printable(path)}: would overwrite an input: give another --out")


def _placed(out: Path, name: str) -> tuple[Path, str]:
    """Folder and base of the names of results that may be in a folder of their own."""
    path = out / name
    return path.parent, path.name


def _predict_video(
    video: StereoVideo, name: str, files: _Files, report: _Report, smooth: float
) -> int:
    """Predict the frames of a video, and write the video of their disparity if it is asked for."""
    from ea_psmnet.files import read_pfm, write_json
    from ea_psmnet.inference.prediction_files import OUTPUTS, RECORD, serves_video
    from ea_psmnet.inference.video import write_disparity_video

    wanted = "preview" in files.outputs
    path = files.out / f"{name}_preview.mp4"
    record = {"inputs": video.views, "settings": files.settings, "smoothing": smooth}
    kept = [each for each in files.outputs if each != "preview"]
    made = [path, path.with_suffix(".json")]
    if wanted and files.keeps_video(path, record, video.paths):
        report.video(name, made, skipped=True)
        wanted = False
    if not (wanted or kept):
        return 0
    maps = OUTPUTS["disparity"].endings
    endings: tuple[str, ...] = ()  # of files that serve the video alone
    if wanted and "disparity" not in kept:
        endings = maps if kept else (*maps, RECORD)
    files.outputs = [*kept, "disparity"] if endings else kept
    frames = video.frames(name)
    predictor = files.predictor

    def file(frame: VideoFrame, ending: str) -> Path:
        folder, base = _placed(files.out, frame.name)
        return folder / f"{base}{ending}"

    def prepare(frame: VideoFrame) -> Prepared:
        return predictor.prepare(video.read(frame), video.paths[0])

    # Frames whose results were asked for by an earlier command keep them.
    serving = {
        frame.name
        for frame in frames
        if endings and (not file(frame, RECORD).exists() or serves_video(file(frame, RECORD)))
    }
    serves = {"serves": {"video": path.name}}
    steps = files.work(
        prepare, lambda frame: video.record(frame) | (serves if frame.name in serving else {})
    )
    code = report.run(frames, steps, of_video=True, unlisted=endings)
    if not wanted:
        return code
    found = [frame for frame in frames if report.statuses[frame.name] != "failed"]
    told = write_disparity_video(
        path, video, found, lambda frame: prepare(frame)[0][0],
        lambda frame: read_pfm(file(frame, maps[0])),
        name=name, smoothing=smooth, beside=files.beside, colours=predictor.what.colours,
    )  # fmt: skip
    write_json(made[1], told | record)
    if endings:
        temporary = (frame for frame in found if frame.name in serving)
        for frame, ending in product(temporary, endings):
            file(frame, ending).unlink(missing_ok=True)
        with suppress(OSError):  # other results are in it
            (files.out / name).rmdir()
    report.video(name, made)
    return code


class _Report:
    """Reports on pairs: paths or JSON on stdout, progress and failures on stderr."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._json = quiet, as_json
        self._failed: list[str] = []
        self.statuses: dict[str, str] = {}
        """Status of each pair by its name."""
        self._counts: Counter[str] = Counter()
        self._alone = 0

    def run(
        self,
        pairs: Sequence[PairSource | VideoFrame],
        work: Work,
        *,
        of_video: bool = False,
        unlisted: tuple[str, ...] = (),
    ) -> int:
        """Predict pairs and return the exit code.

        Args:
            pairs: The pairs.
            work: Steps of their prediction.
            of_video: Whether they are frames: even a single frame that fails is listed.
            unlisted: Ends of the names of files whose paths are not printed.

        Raises:
            Exception: The error of a pair, if it is the only one.
        """
        from ea_psmnet.inference.inputs import PairSource
        from ea_psmnet.inference.many import predict_many
        from ea_psmnet.progress import Progress

        alone = len(pairs) == 1 and not of_video and not self._failed
        hidden = self._quiet or len(pairs) == 1
        with Progress(total=len(pairs), desc="predict", unit="pair", disable=hidden) as bar:
            for pair, outcome in zip(pairs, predict_many(pairs, work), strict=True):
                listed = [path for path in outcome.paths if not path.name.endswith(unlisted)]
                told = replace(outcome, paths=listed)
                self.statuses[pair.name] = outcome.status
                self._counts[outcome.status] += 1
                images = (pair.left, pair.right) if isinstance(pair, PairSource) else ()
                self._tell(told, named=of_video or len(pairs) > 1, images=images)
                bar.update()
                if alone and outcome.error is not None:
                    raise outcome.error
        if len(pairs) > 1 and not self._quiet:
            counts = ", ".join(f"{count} {status}" for status, count in self._counts.items())
            others = f"; {self._alone} without a partner" if self._alone else ""
            print(f"{len(pairs)} pairs: {counts}{others}", file=sys.stderr)
        for line in self._failed:
            print(line, file=sys.stderr)
        return _SOME_FAILED if self._failed else 0

    def alone(self, path: Path) -> None:
        """Note an image without a partner."""
        from ea_psmnet.inference.many import Outcome

        self._alone += 1
        error = ValueError("no image of the other view has this name")
        self._tell(Outcome(str(path), error=error), named=True)

    def video(self, name: str, paths: Sequence[Path], *, skipped: bool = False) -> None:
        """Report the files that belong to all frames of a video."""
        from ea_psmnet.inference.many import Outcome

        self._tell(Outcome(name, list(paths), skipped), named=True)

    def _tell(self, outcome: Outcome, *, named: bool, images: Sequence[Path] = ()) -> None:
        """Print an outcome; a failure names the left image unless its message names an image."""
        from ea_psmnet.console import show_warning
        from ea_psmnet.files import printable
        from ea_psmnet.progress import Progress

        if outcome.error is not None and named:
            told = str(outcome.error)
            if images and not any(str(image) in told for image in images):
                told = f"{printable(images[0])}: {told}"
            self._failed.append(f"failed: {printable(outcome.name)}: {told}")
        if self._json:
            print(json_format.dumps(outcome.to_dict()), flush=True)
            return
        for text in outcome.warnings:
            show_warning(f"{printable(outcome.name)}: {text}" if named else text)
        for path in () if self._quiet or outcome.skipped else outcome.paths:
            Progress.write(printable(path), file=sys.stdout)

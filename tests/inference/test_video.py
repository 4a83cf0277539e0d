"""Videos made here: their frames as pairs, and the video that is written."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ea_psmnet.inference import video as module
from ea_psmnet.inference.outputs import colourise
from ea_psmnet.inference.video import StereoVideo, is_video, write_disparity_video

SIZE = (48, 64)


def picture(number, side=0):
    """Blocks whose brightness tells the frame, which compression keeps nearly."""
    image = np.full((*SIZE, 3), 20 + 30 * number, np.uint8)
    image[:16, 16 * (1 - side) : 32] = 200
    return image


def write_video(path, images, fps=10):
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    for image in images:
        writer.write(image[..., ::-1])
    writer.release()
    return path


@pytest.fixture
def two(tmp_path):
    return [
        write_video(tmp_path / f"{name}_left.avi".replace("left", view), [
            picture(number, side) for number in range(4)
        ])
        for side, (name, view) in enumerate((("hall", "left"), ("hall", "right")))
    ]  # fmt: skip


def left_of(video):
    return lambda frame: video.read(frame)[0]


def close(found, expected):
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_frames_are_pairs_in_any_order(two):
    video = StereoVideo(two)
    assert (video.name, video.count, video.fps) == ("hall", 4, 10)
    frames = video.frames("out")
    assert [frame.name for frame in frames] == [f"out/{number:06d}" for number in range(4)]
    for frame in (*frames, frames[1], frames[3], frames[0]):
        for side, view in enumerate(video.read(frame)):
            close(view, picture(frame.index, side))
    records = [video.record(frame) for frame in frames]
    assert len({record["left"]["sha256"] for record in records}) == 4
    assert records[0]["left"] != records[0]["right"]


def test_one_video_shows_both_views(tmp_path):
    images = [np.hstack([picture(n, 0), picture(n, 1)]) for n in range(3)]
    video = StereoVideo([write_video(tmp_path / "both.avi", images)], "side-by-side")
    assert (video.name, video.count) == ("both", 3)
    for side, view in enumerate(video.read(video.frames("x")[2])):
        close(view, picture(2, side))


def test_lengths_that_differ_are_told(two, tmp_path):
    short = write_video(tmp_path / "short.avi", [picture(0)] * 2)
    with pytest.warns(UserWarning, match="has 4 frames and .* 2: the first 2"):
        assert StereoVideo([two[0], short]).count == 2


def test_what_is_no_video_is_told(two, tmp_path):
    wrong = tmp_path / "wrong.mp4"
    wrong.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"wrong\.mp4: damaged, or not a video"):
        StereoVideo([two[0], wrong])
    with pytest.raises(FileNotFoundError, match=r"none\.avi: no such file"):
        StereoVideo([two[0], tmp_path / "none.avi"])
    with pytest.raises(ValueError, match="1 video and --layout separate"):
        StereoVideo(two[:1])
    assert is_video(wrong)
    assert not is_video(tmp_path / "left.png")


def test_what_ffmpeg_would_take_for_a_protocol_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "12:30.avi", [np.hstack([picture(0), picture(0, 1)])] * 2)
    assert StereoVideo([Path("12:30.avi")], "side-by-side").count == 2


def test_a_name_that_opencv_cannot_take_is_told(two, tmp_path):
    wrong = tmp_path / os.fsdecode(b"caf\xe9.avi")
    two[1].rename(wrong)
    with pytest.raises(ValueError, match="takes no video whose path is not UTF-8: rename it"):
        StereoVideo([two[0], wrong])


@pytest.mark.parametrize("fps", [29.97, 65.4321, 119.4327, 240.123, 1000.123, 90000.0])
def test_a_video_of_any_rate_is_written(two, tmp_path, monkeypatch, fps):
    """MPEG-4 counts at most 65,535 ticks a second: OpenCV refuses some rates above 65.5."""
    video = StereoVideo(two)
    monkeypatch.setattr(video, "fps", fps)
    out = tmp_path / "out.mp4"
    write_disparity_video(
        out, video, video.frames("x")[:2], left_of(video),
        lambda frame: np.full(SIZE, 10, np.float32), name="x",
    )  # fmt: skip
    written = cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS)
    assert written == pytest.approx(min(fps, 65535), rel=1e-4)


def test_the_video_has_one_range_of_colours_and_states_its_flicker(two, tmp_path):
    video = StereoVideo(two)
    frames = video.frames("hall")

    def disparity(frame):
        return np.full(SIZE, 10 + 20 * frame.index, np.float32)

    out = tmp_path / "out.mp4"
    told = write_disparity_video(out, video, frames, left_of(video), disparity, name="hall")
    low, high = told["colours_from_to"]
    assert (told["frames"], low, high) == (4, 10, 70)
    assert told["flicker"]["predicted"] == told["flicker"]["written"]
    written = cv2.VideoCapture(str(out))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert written.get(cv2.CAP_PROP_FPS) == 10
    for frame in frames:
        image = written.read()[1][..., ::-1]
        assert image.shape[0] % 2 == image.shape[1] % 2 == 0
        centre = image[92 + 240, 16 + 656 + 320]
        expected = colourise(disparity(frame)[:1, :1], low, high)[0, 0]
        assert np.abs(centre.astype(int) - expected).max() < 24
    assert not written.read()[0]


def test_a_video_that_cannot_be_written_leaves_nothing(two, tmp_path):
    video = StereoVideo(two)
    with pytest.raises(ValueError, match="no frame was predicted"):
        write_disparity_video(tmp_path / "o.mp4", video, [], left_of(video), None, name="x")
    assert not (tmp_path / "o.mp4").exists()


def test_an_incomplete_video_is_told_and_not_kept(two, tmp_path, monkeypatch):
    """As on a full disk, of which OpenCV says nothing."""
    video, made = StereoVideo(two), tmp_path / "o.mp4"

    class Writer(module._Writer):
        def __exit__(self, *error):
            super().__exit__(*error)
            with self._temporary.open("r+b") as file:
                file.truncate(1000)

    monkeypatch.setattr(module, "_Writer", Writer)
    with pytest.raises(OSError, match=r"o\.mp4: not written, the video is incomplete"):
        write_disparity_video(
            made, video, video.frames("x"), left_of(video),
            lambda frame: np.full(SIZE, 10, np.float32), name="x",
        )  # fmt: skip
    assert not made.exists()

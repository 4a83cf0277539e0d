"""Writes a tiny tree in the layout of each dataset, as unpacked from its authors' archives.

Frame k has a left image of shade 10 (k + 1), a right image of that plus 1, and the disparity
8.5 (k + 1), with pixel (0, 0) unknown if the format allows it. The right view's disparity is half a
pixel more. Pixel (0, 1) is occluded in the right image if the dataset has masks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ea_psmnet.files import write_image, write_npy, write_pfm, write_text

SIZE = (4, 6)
FRAMES = (0, 1)
Order = Iterable[int]


def shade(k: int, view: str = "left") -> int:
    return 10 * (k + 1) + (view == "right")


def truth(k: int, view: str = "left", unknown: float = np.nan) -> np.ndarray:
    """Return the disparity of a frame, (H, W) float32."""
    values = np.full(SIZE, 8.5 * (k + 1) + 0.5 * (view == "right"), np.float32)
    values[0, 0] = unknown
    return values


def write_png(path: Path, values: Any, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.rint(np.nan_to_num(values)).astype(dtype))


def write_shades(path: Path, k: int, view: str) -> None:
    write_image(path, np.full((*SIZE, 3), shade(k, view), np.uint8))


def write_mask(path: Path, elsewhere: int, hidden: int) -> None:
    values = np.full(SIZE, elsewhere)
    values[0, 1] = hidden
    write_png(path, values, np.uint8)


def kitti(root: Path, cameras: tuple[str, str], known: tuple[str, str], order: Order) -> Path:
    for k in order:
        for camera, view in zip(cameras, ("left", "right"), strict=True):
            write_shades(root / f"training/{camera}/{k:06d}_10.png", k, view)
            write_shades(root / f"training/{camera}/{k:06d}_11.png", k + 20, view)
        everywhere, visible = truth(k), truth(k)
        visible[0, 1] = np.nan
        write_png(root / f"training/{known[0]}/{k:06d}_10.png", everywhere * 256)
        write_png(root / f"training/{known[1]}/{k:06d}_10.png", visible * 256)
    return root


def kitti2012(root: Path, order: Order = FRAMES) -> Path:
    return kitti(root, ("colored_0", "colored_1"), ("disp_occ", "disp_noc"), order)


def kitti2015(root: Path, order: Order = FRAMES) -> Path:
    kitti(root, ("image_2", "image_3"), ("disp_occ_0", "disp_noc_0"), order)
    for k in order:  # the later moment's disparity
        write_png(root / f"training/disp_occ_1/{k:06d}_10.png", truth(k + 3) * 256)
    return root


def scene(images: Path, known: Path, k: int, names: tuple[str, str]) -> None:
    """Write a scene in the format of Middlebury."""
    for name, view in (("im0", "left"), ("im1", "right")):
        write_shades(images / f"{name}.png", k, view)
    for name, view in zip(names, ("left", "right"), strict=True):
        write_pfm(known / f"{name}.pfm", truth(k, view, np.inf))
    write_text(images / "calib.txt", "cam0=[100 0 3; 0 100 2; 0 0 1]\ndoffs=5\nbaseline=100\n")


def middlebury2014(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        for kind in ("perfect", "imperfect"):
            folder = root / f"{'Adirondack' if k == 0 else 'Bicycle1'}-{kind}"
            scene(folder, folder, k + 5 * (kind == "imperfect"), ("disp0", "disp1"))
            write_shades(folder / "im1E.png", k + 10, "right")
            write_shades(folder / "im1L.png", k + 15, "right")
    return root


def middlebury2021(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        folder = root / "data" / ("artroom1" if k == 0 else "skates2")
        scene(folder, folder, k, ("disp0", "disp1"))
        write_shades(folder / "ambient/L0/im0e0.png", k + 10, "left")
    return root


def middeval3(root: Path, order: Order = FRAMES, size: str = "Q") -> Path:
    for k in order:
        folder = root / f"MiddEval3/training{size}/{'Adirondack' if k == 0 else 'ArtL'}"
        scene(folder, folder, k, ("disp0GT", "disp1GT"))
        write_mask(folder / "mask0nocc.png", 255, 128)
    return root


def eth3d(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        place = "delivery_area_1l" if k == 0 else "electro_1l"
        known = root / f"two_view_training_gt/{place}"
        scene(root / f"two_view_training/{place}", known, k, ("disp0GT", "unused"))
        write_mask(known / "mask0nocc.png", 255, 0)
    return root


def sintel(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        frame = f"{'alley_1' if k == 0 else 'bamboo_2'}/frame_0001.png"
        for number, render_pass in enumerate(("clean", "final")):
            for view in ("left", "right"):
                path = root / f"training/{render_pass}_{view}" / frame
                write_shades(path, k + 10 * number, view)
        values = truth(k, unknown=300.25)  # Sintel knows every pixel
        red, green = values // 4, values * 64 % 256
        coded = np.dstack([np.zeros(SIZE), green, red])  # OpenCV's order
        write_png(root / "training/disparities" / frame, coded, np.uint8)
        write_mask(root / "training/occlusions" / frame, 0, 255)
        outside = np.zeros(SIZE)
        outside[0, 0] = 255
        write_png(root / "training/outofframe" / frame, outside, np.uint8)
    return root


def crestereo(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        stem = "tree/7/0001" if k else "hole/0001"
        for view in ("left", "right"):
            write_shades(root / f"{stem}_{view}.jpg", k, view)
            write_png(root / f"{stem}_{view}.disp.png", truth(k, view) * 32)
    return root


def falling_things(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        folder = root / ("mixed/kitchen_0" if k else "single/002_master_chef_can_16k/kitchen_0")
        for view in ("left", "right"):
            write_shades(folder / f"000003.{view}.jpg", k, view)
            depth = 768.2 * 600 / truth(k, view)  # 6 cm, in 0.1 mm
            depth[0, 0] = 65535
            write_png(folder / f"000003.{view}.depth.png", depth)
        camera = {"name": "left", "intrinsic_settings": {"fx": 768.2, "fy": 768.2}}
        write_text(folder / "_camera_settings.json", json.dumps({"camera_settings": [camera] * 2}))
    return root


def instereo2k(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        for folder in (root / f"train/part{k + 1}/{k:06d}", root / f"test/{k + 5:06d}"):
            for view in ("left", "right"):
                write_shades(folder / f"{view}.png", k, view)
                write_png(folder / f"{view}_disp.png", truth(k, view) * 100)
    return root


def virtual_kitti(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        frames = root / f"Scene01/{'clone' if k == 0 else 'fog'}/frames"
        for camera, view in enumerate(("left", "right")):
            write_shades(frames / f"rgb/Camera_{camera}/rgb_00002.jpg", k, view)
            depth = 725.0087 * 53.2725 / truth(k, view)
            depth[0, 0] = 65535
            write_png(frames / f"depth/Camera_{camera}/depth_00002.png", depth)
    return root


def tartanair(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        flight = root / f"{'hospital/hospital/Easy' if k == 0 else 'ocean/ocean/Hard'}/P000"
        for view in ("left", "right"):
            write_shades(flight / f"image_{view}/000001_{view}.png", k, view)
            write_npy(flight / f"depth_{view}/000001_{view}_depth.npy", 80 / truth(k, view))
    return root


def tartanair_v2(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        flight = root / f"{'CarWelding/Data_easy' if k == 0 else 'Ocean/Data_hard'}/P000"
        for camera, view in (("lcam_front", "left"), ("rcam_front", "right")):
            write_shades(flight / f"image_{camera}/000001_{camera}.png", k, view)
            depth = (80 / truth(k, view)).astype("<f4")
            coded = depth.view(np.uint8).reshape(*SIZE, 4)
            path = flight / f"depth_{camera}/000001_{camera}_depth.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), coded)
    return root


def folder(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        pair = root / f"pair{k}"
        for view, name in (("left", "disp"), ("right", "disp_right")):
            write_shades(pair / f"{view}.png", k, view)
            write_npy(pair / f"{name}.npy", truth(k, view))
        write_mask(pair / "nonocc.png", 255, 0)
    return root


def pair_list(root: Path, order: Order = FRAMES) -> Path:
    """Write pairs in the given order; the list has an order of its own."""
    folder(root, order)
    columns = ("left.png", "right.png", "disp.npy", "nonocc.png", "disp_right.npy")
    rows = [",".join(f"pair{k}/{name}" for name in columns) for k in FRAMES]
    write_text(
        root / "pairs.csv", "\n".join(("left,right,disparity,nonocc,disparity_right", *rows))
    )
    return root / "pairs.csv"


def sceneflow(root: Path, order: Order = FRAMES) -> Path:
    for k in order:
        frame = f"{'a_rain_of_stones_x2' if k == 0 else 'eating_x2'}/{{}}/0000"
        for view in ("left", "right"):
            for number, render_pass in enumerate(("clean", "final")):
                folder = root / f"Monkaa/frames_{render_pass}pass"
                write_shades(folder / f"{frame.format(view)}.png", k + 10 * number, view)
            write_pfm(root / f"Monkaa/disparity/{frame.format(view)}.pfm", truth(k, view))
    return root


TREES: dict[str, Callable[..., Path]] = {
    "sceneflow": sceneflow,
    "kitti2012": kitti2012,
    "kitti2015": kitti2015,
    "middlebury2014": middlebury2014,
    "middlebury2021": middlebury2021,
    "middeval3": middeval3,
    "eth3d": eth3d,
    "sintel": sintel,
    "crestereo": crestereo,
    "falling-things": falling_things,
    "instereo2k": instereo2k,
    "virtual-kitti": virtual_kitti,
    "tartanair": tartanair,
    "tartanair-v2": tartanair_v2,
    "folder": folder,
    "list": pair_list,
}
"""Writers by name of the dataset; each returns the root for the reader."""

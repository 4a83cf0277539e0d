"""Draw the picture of the README: a rendered pair's left image, its disparity and its point cloud.

    .venv/bin/python scripts/benchmarks/overview.py [--out docs/images/overview.png]

The disparity is predicted with the bundled weights; the cloud is seen from the left and above.
"""

from __future__ import annotations

import benchmarking

# isort: split
import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet import Calibration, StereoMatcher
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.figures import GridStyle, Row, fitted, panel_grid
from ea_psmnet.files import write_image
from ea_psmnet.geometry import PointCloud
from ea_psmnet.inference.outputs import colour_range, colourise

SIZE, SIDE = (540, 960), 480
FOCAL = 900.0
"""Focal length in pixels that the cloud is drawn with."""
YAW, PITCH = np.radians((10, 9))


def main() -> None:
    """Render, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/overview.png"))
    parser.add_argument("--seed", type=int, default=26, help="seed of the rendered scene")
    arguments = parser.parse_args()
    scene = SyntheticScenes(seed=arguments.seed, split="test", size=SIZE)[0]
    height, width = SIZE
    camera = Calibration(f=FOCAL, cx=width / 2, cy=height / 2, baseline=0.1, doffs=0)
    result = StereoMatcher.load()(scene.left, scene.right, calibration=camera, confidence=True)
    disparity = colourise(result.disparity, *colour_range(result.disparity))
    panels = (scene.left, disparity, _seen(result.points()))
    row = Row(
        tuple(fitted(panel, SIDE, SIDE) for panel in panels),
        captions=("Left image", "Disparity", "Point cloud, seen from elsewhere"),
    )
    write_image(
        arguments.out,
        panel_grid([row], GridStyle(SIDE, 12, 0, line=26, size=11, title=12, title_size=12)),
    )
    print(arguments.out)


def _seen(cloud: PointCloud) -> NDArray[np.uint8]:
    """The cloud from another place, (H, W, 3); nearer points hide those behind."""
    height, width = SIZE
    centre = np.median(cloud.points, axis=0)
    turned = (cloud.points - centre) @ _rotation().T + centre * (0, 0, 1.05)
    keep = turned[:, 2] > 0.05
    turned, colours = turned[keep], cloud.colours[keep]
    far_first = np.argsort(-turned[:, 2])
    x, y, z = turned[far_first].T
    columns = np.rint(FOCAL * x / z + width / 2).astype(int)
    rows = np.rint(FOCAL * y / z + height / 2).astype(int)
    picture = np.full((height, width, 3), 255, np.uint8)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        places = rows + down, columns + right
        inside = (places[0] >= 0) & (places[0] < height) & (places[1] >= 0) & (places[1] < width)
        picture[places[0][inside], places[1][inside]] = colours[far_first][inside]
    return picture


def _rotation() -> NDArray[np.float64]:
    yaw = np.array(((np.cos(YAW), 0, np.sin(YAW)), (0, 1, 0), (-np.sin(YAW), 0, np.cos(YAW))))
    pitch = np.array(
        ((1, 0, 0), (0, np.cos(PITCH), -np.sin(PITCH)), (0, np.sin(PITCH), np.cos(PITCH)))
    )
    return pitch @ yaw


if __name__ == "__main__":
    benchmarking.run(main)

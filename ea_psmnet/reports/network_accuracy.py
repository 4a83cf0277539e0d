"""Whether the rearranged forms of a trained network predict what the published form does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.synthetic import SyntheticScenes
from ea_psmnet.files import read_disparity, read_image
from ea_psmnet.machine import choose_device
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PlainPSMNet, PSMNet
from ea_psmnet.models.weights import load_model
from ea_psmnet.sample import StereoSample

__all__ = ["Accuracy", "measure_accuracy", "pair_folders"]


@dataclass(frozen=True)
class Accuracy:
    """One pair, in pixels; EPE of known disparities that are searched."""

    name: str
    exact_max: float
    """Largest difference of the rearranged form to the published one in float32."""
    fast_mean: float
    """Mean difference of the form in bfloat16."""
    epe_plain: float
    epe_exact: float
    epe_fast: float


def measure_accuracy(checkpoint: Path, pairs: Path | None) -> list[Accuracy]:
    """Compare the forms on pairs of a folder, `NAME/left.png, right.png, disp.npy`, or scenes.

    Args:
        checkpoint: trained weights.
        pairs: None for scenes rendered here.

    Raises:
        FileNotFoundError: no such checkpoint, or no pairs in the folder.
    """
    model = load_model(checkpoint).eval().to(choose_device("auto"))
    networks = (
        PlainPSMNet(model),
        arrange_for_inference(model),
        arrange_for_inference(model, torch.bfloat16),
    )
    samples = _scenes() if pairs is None else _pairs(pairs)
    return [_compare(sample, networks) for sample in samples]


def _scenes() -> Iterator[StereoSample]:
    scenes = SyntheticScenes(split="test", size=(256, 512), count=3)
    return (scenes[index] for index in range(len(scenes)))


def pair_folders(folder: Path) -> list[Path]:
    """The pairs in a folder.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path.parent for path in folder.glob("*/disp.npy"))
    if not found:
        raise FileNotFoundError(f"{folder}: no pairs: expected NAME/left.png, right.png, disp.npy")
    return found


def _pairs(folder: Path) -> Iterator[StereoSample]:
    for pair in pair_folders(folder):
        left, right = (read_image(pair / f"{view}.png") for view in ("left", "right"))
        disparity = read_disparity(pair / "disp.npy")[0]
        yield StereoSample(left, right, disparity, np.isfinite(disparity), pair.name)


def _compare(sample: StereoSample, networks: tuple[PSMNet, ...]) -> Accuracy:
    height, width = (side // SIZE_MULTIPLE * SIZE_MULTIPLE for side in sample.disparity.shape)
    window = np.s_[:height, :width]
    images = [_tensor(view[window]).to(networks[0].mean.device) for view in _views(sample)]
    plain, exact, fast = (
        _predict(network, images, fast=index == 2) for index, network in enumerate(networks)
    )
    truth = sample.disparity[window]
    known = sample.valid[window] & (truth > 0) & (truth < networks[0].config.max_disparity)
    epes = (float(np.abs(p - truth)[known].mean()) for p in (plain, exact, fast))
    differences = float(np.abs(exact - plain).max()), float(np.abs(fast - plain).mean())
    return Accuracy(sample.name, *differences, *epes)


def _views(sample: StereoSample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return sample.left, sample.right


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def _predict(network: PSMNet, images: list[Tensor], *, fast: bool) -> NDArray[np.float32]:
    kind = images[0].device.type
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=fast):
        return network(*images).disparity[0].float().cpu().numpy()

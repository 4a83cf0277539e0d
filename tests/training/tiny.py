"""A network and data small enough for many runs."""

import numpy as np
from torch import nn

from ea_psmnet.files import write_image, write_npy
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.features import ResidualBlock
from ea_psmnet.training.validation import Validation

TINY = PSMNetConfig(width=0.25, attention="efficient", attention_sites=("encoder",))

FIGURES = {
    "loss": 2.5,
    "epe": 1.25,
    "lr": 1e-3,
    "gradient_norm": 3.0,
    "samples_per_second": 4.0,
    "waiting": 0.25,
    "memory": 1.5,
    "skipped": 0,
}
"""What a step tells."""

FACTS = {"parameters": 1000, "precision": "float32", "device": "cpu", "processes": 1}
"""What a run records about itself."""

OUTCOME = Validation(DisparityErrors(4, 4, 8.0), {}, 1, [])
"""Of a validation of one image."""


def one_block(inputs, outputs, blocks, **options):
    """A stage of the feature network without its many further blocks: in place of `_stage`."""
    return nn.Sequential(ResidualBlock(inputs, outputs, **options))


def write_pairs(folder, names=range(6)):
    """Pairs of noise with a constant disparity each: easy to learn, quick to read."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        disparity = 3 + 2 * number
        wide = rng.integers(0, 255, (36, 96, 3), dtype=np.uint8)
        write_image(folder / f"{name}" / "left.png", wide[:, :70])
        write_image(folder / f"{name}" / "right.png", wide[:, disparity : 70 + disparity])
        write_npy(folder / f"{name}" / "disp.npy", np.full((36, 70), disparity, np.float32))
    return folder

"""PSMNet (Chang and Chen, "Pyramid Stereo Matching Network", CVPR 2018), with optional attention.

Shapes: B batch, H and W of the images, D the maximum disparity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ea_psmnet.models.aggregation import build_aggregation
from ea_psmnet.models.config import SCALE, PSMNetConfig, preset
from ea_psmnet.models.efficientnet import EfficientNetFeatures
from ea_psmnet.models.features import FeatureNetwork, Guides
from ea_psmnet.models.head import Choice, DisparityHead, build_head
from ea_psmnet.models.layers import ScoreConv3d, initialise
from ea_psmnet.models.normalisation import to_group_norm
from ea_psmnet.models.volume import CostVolume, Parts, build_volume

SIZE_MULTIPLE = 4 * SCALE
"""Image sides must be multiples of this, because the volume at 1/4 of them is halved twice."""

Features = FeatureNetwork | EfficientNetFeatures
FEATURES: dict[str, type[Features]] = {
    "psmnet": FeatureNetwork,
    "efficientnet-lite0": EfficientNetFeatures,
}


class PairFeatures(NamedTuple):
    """Output of the feature network for a batch of pairs."""

    left: Tensor
    """(B, C, H / 4, W / 4), matching features of the left image."""
    right: Tensor
    """(B, C, H / 4, W / 4), matching features of the right image."""
    guides: Guides
    """Guide maps of the left image."""

    def window(self, rows: slice, columns: slice) -> PairFeatures:
        """Crop to a window, in pixels of the features; its bounds are multiples of 4."""
        guides = {
            scale: guide[..., _scaled(rows, SCALE / scale), _scaled(columns, SCALE / scale)]
            for scale, guide in self.guides.items()
        }
        return PairFeatures(self.left[..., rows, columns], self.right[..., rows, columns], guides)


class StereoOutput(NamedTuple):
    """Output of a network for a batch of pairs, the best last."""

    disparities: list[Tensor]
    """(B, H, W) each, in pixels: one for each classifier in training, the last in evaluation."""
    scores: list[Tensor]
    """(B, D / 4, H / 4, W / 4) each, the scores of these disparities; higher is likelier."""
    choices: list[Choice] | None = None
    """In training, the cells from which a learned head chose these disparities."""

    @property
    def disparity(self) -> Tensor:
        """The best, (B, H, W) in pixels."""
        return self.disparities[-1]


class PSMNet(nn.Module):
    """Disparity of the left image of a rectified pair.

    Both images pass the feature network as one batch, so that in training its batch normalisation
    sees left and right images together. The published code normalises them separately; in
    evaluation there is no difference.

    Args:
        config: Configuration of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        self.config = config
        self.features = FEATURES[config.features](config)
        guides = self.features.guide_channels
        self.volume = build_volume(config, self.features.channels(config))
        self.aggregation = build_aggregation(config, self.volume.parts, guides)
        self.head = build_head(config, guides)
        self.features.guided = self.head.guided or config.excitation
        if config.normalisation == "group":
            to_group_norm(self)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(self.features, name)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def checkpointing(self) -> bool:
        """Whether training recomputes most activations of the volume in the backward."""
        return self.aggregation.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.aggregation.checkpointing = value

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        """Predict disparity.

        Args:
            left: (B, 3, H, W) RGB from 0 to 1, sides multiples of 16.
            right: The right images, of the same shape.

        Raises:
            ValueError: The images differ in shape, or a side is not a multiple of 16.
        """
        features = self.extract(left, right)
        scores = self.aggregate(self.build(features), features.guides)
        return self.regress(scores, features.guides)

    def extract(self, left: Tensor, right: Tensor) -> PairFeatures:
        """The first stage: features of both images; arguments as in `forward`."""
        _check_images(left, right)
        matching, guides = self.describe(torch.cat([left, right]))
        of_left, of_right = matching.chunk(2)
        return PairFeatures(of_left, of_right, {s: g[: len(left)] for s, g in guides.items()})

    def extract_apart(self, left: Tensor, right: Tensor) -> PairFeatures:
        """`extract`, one image after the other, which takes less memory.

        In training each image is normalised by its own statistics.
        """
        _check_images(left, right)
        (of_left, guides), (of_right, _) = map(self.describe, (left, right))
        return PairFeatures(of_left, of_right, guides)

    def describe(self, images: Tensor) -> tuple[Tensor, Guides]:
        """Images (B, 3, H, W) to matching features (B, C, H / 4, W / 4), and guide maps."""
        return self.features((images - self.mean) / self.std)

    def build(self, features: PairFeatures) -> Parts:
        """The second stage: the cost volume, in parts."""
        return self.volume(features.left, features.right, self.config.levels)

    def aggregate(self, volume: Parts, guides: Guides) -> list[Tensor]:
        """The third stage: scores (B, K, h, w), the best last; in evaluation the last alone."""
        scores = self.aggregation(volume, guides)
        return scores if self.training else scores[-1:]

    def regress(self, scores: list[Tensor], guides: Guides) -> StereoOutput:
        """The last stage: disparities from the scores."""
        choices = self.head.choices(scores, guides) if self.training else None
        if choices is None:
            return StereoOutput(self.head(scores, guides), scores)
        disparities = [choice.combine(plain=self.head.plain) for choice in choices]
        return StereoOutput(disparities, scores, choices)


def _scaled(part: slice, factor: float) -> slice:
    return slice(int(part.start * factor), int(part.stop * factor))


def _check_images(left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape or left.dim() != 4 or left.shape[1] != 3:
        raise ValueError(
            "expected two (B, 3, H, W) images of one shape, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    height, width = left.shape[-2:]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        short = [-height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE]
        raise ValueError(
            f"image sides must be multiples of {SIZE_MULTIPLE}, got {height} x {width}: "
            f"pad by {short[0]} rows and {short[1]} columns, or use StereoMatcher, which does"
        )


def build_model(config: PSMNetConfig | str) -> PSMNet:
    """Build a freshly initialised network from a configuration or the name of a preset.

    Raises:
        ValueError: Unknown preset, or an impossible configuration.
    """
    model = PSMNet(preset(config) if isinstance(config, str) else config)
    initialise(model)
    return model


class PlainPSMNet(PSMNet):
    """A network that computes as PSMNet's code does: the reference that faster forms are held to.

    Features of one image after the other, so that in training each is normalised by its own
    statistics; the concatenation volume filled by a loop over disparities; scores upsampled to
    (B, D, H, W), then softmax and expectation; contiguous weights. With
    `EA_PSMNET_COMPILE=0` its convolutions train by torch's operators.

    Args:
        network: The network whose configuration, weights and mode are copied.
    """

    def __init__(self, network: PSMNet) -> None:
        super().__init__(network.config)
        self.to(network.mean).load_state_dict(network.state_dict())
        self.train(network.training)
        for module in self.modules():
            if isinstance(module, ScoreConv3d | CostVolume | DisparityHead):
                module.plain = True

    def extract(self, left: Tensor, right: Tensor) -> PairFeatures:
        """See `PSMNet.extract_apart`."""
        return self.extract_apart(left, right)

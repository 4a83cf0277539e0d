"""The network in the published form: what faster ones are held to, and timed against."""

from __future__ import annotations

from torch import Tensor

from ea_psmnet.models.layers import ScoreConv3d
from ea_psmnet.models.psmnet import PSMNet, check_images
from ea_psmnet.ops.cost_volume import concat_volume_reference
from ea_psmnet.ops.soft_argmin import soft_argmin_reference

__all__ = ["PlainPSMNet"]


class PlainPSMNet(PSMNet):
    """A network that computes as PSMNet's code does, for training or evaluation.

    One image's features after the other, so that in training each is normalised by its own
    statistics; the concatenation volume filled by a loop over disparities; scores upsampled to
    (B, D, H, W), then softmax and expectation; contiguous weights.

    Args:
        network: whose configuration, weights and mode it copies.
    """

    def __init__(self, network: PSMNet) -> None:
        super().__init__(network.config)
        self.to(network.mean).load_state_dict(network.state_dict())
        self.train(network.training)
        for module in self.modules():
            if isinstance(module, ScoreConv3d):
                module.plain = True

    def forward(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """See `PSMNet.forward`."""
        check_images(left, right)
        left_features, right_features = (
            self.features((image - self.mean) / self.std) for image in (left, right)
        )
        disparities = self.config.max_disparity // 4
        scores = self.aggregation(
            concat_volume_reference(left_features, right_features, disparities)
        )
        size = (self.config.max_disparity, left.shape[-2], left.shape[-1])
        return [
            soft_argmin_reference(score, size, **self.head_options)
            for score in (scores if self.training else scores[-1:])
        ]

"""The network in the published form: what faster ones are held to, and timed against."""

from __future__ import annotations

from torch import Tensor

from ea_psmnet.models.head import DisparityHead
from ea_psmnet.models.layers import ScoreConv3d
from ea_psmnet.models.psmnet import PairFeatures, PSMNet, check_images
from ea_psmnet.models.volume import CostVolume

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
            if isinstance(module, ScoreConv3d | CostVolume | DisparityHead):
                module.plain = True

    def extract(self, left: Tensor, right: Tensor) -> PairFeatures:
        """See `PSMNet.extract`."""
        check_images(left, right)
        (of_left, guides), (of_right, _) = map(self.describe, (left, right))
        return PairFeatures(of_left, of_right, guides)

"""Networks as modules that `torch.export` can trace into a graph of plain operators."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ea_psmnet.models.deploy import fold_normalisation
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.precision import round_kernel

__all__ = ["ExportableNetwork"]


class ExportableNetwork(nn.Module):
    """A network for evaluation: two images to the disparity.

    Batch normalisation is folded into convolutions. While a graph is traced, operators that have a
    form of their own for inference compute in a plain one (`torch.compiler.is_exporting`).

    Args:
        network: Any network; a copy of it is used.
        dtype: Type of the weights. Below float32, normalisation of images, softmaxes, sums of
            attention and the disparity head remain in float32.
    """

    def __init__(self, network: PSMNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        made = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        fold_normalisation(made.modules())
        if dtype != torch.float32:
            for parameter in made.parameters():
                data = parameter.data
                rounded = round_kernel(data, dtype) if data.dim() > 2 else data.to(dtype)
                parameter.data = rounded
            for module in made.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and module is not made and buffer.is_floating_point():
                        module._buffers[name] = buffer.to(dtype)
            made.features = _Narrowed(made.features, dtype)  # type: ignore[assignment]
        self.network = made

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Images (B, 3, H, W) in float32 from 0 to 1 to disparity (B, H, W) in float32."""
        return self.network(left, right).disparity.float()


class _Narrowed(nn.Module):
    """Features of images rounded to a type."""

    def __init__(self, features: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.features, self.dtype = features, dtype

    def forward(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """See `FeatureNetwork.forward`."""
        return self.features(images.to(self.dtype))

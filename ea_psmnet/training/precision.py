"""Arithmetic of a run: what convolutions compute in, and the scaling that float16 needs."""

from __future__ import annotations

import torch

from ea_psmnet.machine import has_fast_bfloat16
from ea_psmnet.training.config import TrainingConfig, TrainingPrecision

__all__ = ["Arithmetic", "choose_arithmetic"]

_BF16_BROKEN_AT = (16, 32)
"""Maximum disparities whose volumes are two deep somewhere: there the CPU's bfloat16 gradient of a
convolution's weights reads uninitialised memory (oneDNN in torch 2.15, both memory layouts)."""

_DTYPES: dict[TrainingPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Arithmetic:
    """Autocast and loss scaling for one device.

    Parameters, their gradients and the optimiser stay in float32.
    """

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype = dtype
        self.device = device
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """The context to run the network in."""
        reduced = self.dtype != torch.float32
        return torch.autocast(self.device, self.dtype if reduced else None, enabled=reduced)

    @property
    def may_overflow(self) -> bool:
        """Whether an infinite gradient may be cured by a smaller loss scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1


def choose_arithmetic(config: TrainingConfig, device: str) -> Arithmetic:
    """What a configuration asks for on `cpu` or `cuda`.

    Raises:
        ValueError: the device computes it wrongly at this maximum disparity.
    """
    broken = device == "cpu" and config.max_disparity in _BF16_BROKEN_AT
    if broken and config.precision in ("bf16", "fp16"):
        raise ValueError(
            f"{config.precision} on a CPU cannot train max disparity {config.max_disparity}: take "
            "48 or more, or --precision fp32"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bfloat16(device) and not broken else "fp32"
    return Arithmetic(_DTYPES[precision], device)

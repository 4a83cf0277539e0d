"""Which module of a network is at work, so that a failure can name it."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from ea_psmnet.attention import VolumeAttention

__all__ = ["ModuleTrace", "attention_site"]

_SITE = re.compile(r"aggregation\.(?:attention|hourglasses\.(\d)\.attention\.(\w+))")


class ModuleTrace:
    """Follows a network through hooks on its modules.

    In the forward, the module at work is the last one entered and not left. In the backward it is
    the one whose output's gradient came in last.
    """

    def __init__(self, network: nn.Module) -> None:
        self.largest: tuple[int, int, int] | None = None
        """Batch, height and width of the largest input so far."""
        self._entered: list[str] = []
        self._backward: str | None = None
        network.register_forward_pre_hook(self._see)
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name or "network"))
            module.register_forward_hook(partial(self._leave, name or "network"))

    @property
    def current(self) -> str | None:
        """The module's name, `network` for the outermost; None where none is at work."""
        return self._entered[-1] if self._entered else self._backward

    def clear(self) -> None:
        """Say that no module is at work: a backward has no end that a hook sees."""
        self._entered.clear()
        self._backward = None

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batch, _channels, height, width = inputs[0].shape
        seen = (batch, height, width)
        if self.largest is None or math.prod(seen) > math.prod(self.largest):
            self.largest = seen

    def _enter(self, name: str, *_: Any) -> None:
        self._entered.append(name)

    def _leave(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        self._entered.pop()
        leaf = isinstance(module, VolumeAttention) or not any(module.children())
        if leaf and isinstance(output, Tensor) and output.grad_fn is not None:
            output.grad_fn.register_prehook(partial(self._begin_backward, name))

    def _begin_backward(self, name: str, _: Any) -> None:
        self._backward = name


def attention_site(module: str) -> str | None:
    """The place of attention, of `SITES`, that a module of `PSMNet` is or lies in.

    Example:
        >>> attention_site("aggregation.hourglasses.0.attention.encoder.queries")
        'hourglass1.encoder'
    """
    match = _SITE.match(module)
    if match is None:
        return None
    index, place = match.groups()
    return "volume" if index is None else f"hourglass{int(index) + 1}.{place}"

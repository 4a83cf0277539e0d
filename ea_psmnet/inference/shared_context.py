"""Efficient attention over a volume of which only tiles are in memory.

Its context is a sum over all positions (Shen et al., WACV 2021, section 3.2), so tiles can gather
their parts of it one after the other, and then each is given the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ea_psmnet.attention import EfficientAttention
from ea_psmnet.ops.efficient_block import gather_context, spread_context
from ea_psmnet.ops.efficient_passes import merge_pieces

__all__ = ["GatheredError", "SharedContexts", "SharedSite"]


class GatheredError(Exception):
    """The last site has gathered its part of a tile: what would follow is of no use."""


class SharedSite:
    """One attention module, while tiles share its context."""

    def __init__(self, module: EfficientAttention) -> None:
        self.module = module
        self._pieces: list[tuple[Tensor, Tensor]] = []
        self._context: Tensor | None = None

    def gather(self, own: Tensor) -> None:
        """Take in positions, (1, C, K, h, w), that no other tile has as its own."""
        self._pieces.append(gather_context(own.flatten(2), self.module.weights()))

    def finish(self) -> None:
        """Put the parts together: from now on `spread` uses the whole."""
        contexts, sums = (torch.stack(parts, dim=1) for parts in zip(*self._pieces, strict=True))
        self._context, _ = merge_pieces(sums, torch.ones_like(sums), contexts)
        self._pieces.clear()

    def spread(self, volume: Tensor) -> Tensor:
        """The module's output for a tile; before the first `finish` by the tile's own context."""
        if self._context is None:
            return EfficientAttention.forward(self.module, volume)
        x = volume.flatten(2)
        out = spread_context(x, self.module.weights(), self.module.heads, self._context)
        return out.unflatten(2, volume.shape[2:])


class SharedContexts:
    """The modules of a network whose contexts tiles can share.

    Those with a softmax and without positions, whose coordinates would be a tile's own.
    """

    def __init__(self, network: nn.Module) -> None:
        self.sites = [
            SharedSite(module)
            for module in network.modules()
            if isinstance(module, EfficientAttention)
            and module.normalisation == "softmax"
            and not module.positions
        ]
        self._own: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the modules work on tiles while this is entered."""
        for site in self.sites:
            site.module.__dict__["forward"] = partial(self._forward, site)
        try:
            yield
        finally:
            for site in self.sites:
                del site.module.__dict__["forward"]

    @contextmanager
    def gathering(self, own: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Gather from the tile that the network sees now, and stop it behind the last site.

        Args:
            own: cuts from a site's volume of the tile what is this tile's own.
        """
        self._own = own
        try:
            yield
        except GatheredError:
            pass
        finally:
            self._own = None

    def finish(self) -> None:
        """Use what has been gathered."""
        for site in self.sites:
            site.finish()

    def _forward(self, site: SharedSite, volume: Tensor) -> Tensor:
        if self._own is not None:
            site.gather(self._own(volume))
            if site is self.sites[-1]:
                raise GatheredError
        return site.spread(volume)

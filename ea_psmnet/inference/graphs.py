"""CUDA graphs: what a forward launches, recorded once for a shape and then launched in one call.

A card that is faster than Python launches kernels waits for them, above all at small sizes. A graph
is launched at once, but it works at the addresses it was recorded with: on copies of its inputs, in
memory that it holds as long as it lives.

Written by torch's documentation and not yet run on a card: off unless it is asked for.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor

__all__ = ["Forward", "GraphRecorder", "GraphedForward"]

Forward = Callable[[Tensor, Tensor], list[Tensor]]
"""Two batches of images to what a network makes of them."""

Record = Callable[[Forward, Tensor, Tensor], Forward]
"""A forward and inputs to one that replays it, for inputs of the same shapes."""


class GraphedForward:
    """A forward that is recorded when shapes come a second time, and from then on replayed.

    The first time it runs as ever, so that shapes that come once cost nothing. If recording fails,
    a warning says so, what was recorded is dropped, and all goes on without. Not for several
    threads at once.

    Args:
        forward: computes on the card alone; what it reads besides its inputs must not be replaced.
        record: a `GraphRecorder`.
        most: how many shapes to remember; the least recently used go first. Where more take turns,
            none is recorded.
    """

    def __init__(self, forward: Forward, record: Record, *, most: int = 4) -> None:
        self._forward, self._record, self._most = forward, record, most
        self._known: OrderedDict[tuple[torch.Size, torch.Size], Forward] = OrderedDict()
        self._works = True

    @torch.inference_mode()
    def __call__(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """What the forward returns; tensors that later calls leave alone."""
        shapes = left.shape, right.shape
        again = shapes in self._known
        forward = self._known.pop(shapes, self._forward)
        if again and forward is self._forward and self._works:
            forward = self._recorded(left, right)
        self._known[shapes] = forward
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return forward(left, right)

    def _recorded(self, left: Tensor, right: Tensor) -> Forward:
        """A replay for these shapes, or where that fails the forward itself."""
        try:
            return self._record(self._forward, left, right)
        except RuntimeError as error:  # also for want of memory
            reason = str(error).partition("\n")[0]
        self._works = False
        self._known.clear()
        warnings.warn(f"no CUDA graph, going on without: {reason}", stacklevel=4)
        return self._forward


class GraphRecorder:
    """Records forwards on the current card, in graphs that share one pool of memory.

    They may, because they run one after the other and what they return is copied at once. So the
    pool is about what the largest of them takes, and it is held while any of them lives; each holds
    its inputs and outputs besides. If the card refuses something that was to be recorded, torch
    keeps what the attempt took until the process ends.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, forward: Forward, left: Tensor, right: Tensor) -> Forward:
        """Run a forward once and record it.

        Raises:
            RuntimeError: it waits for the card, or does something else that cannot be recorded, or
                memory does not suffice.
        """
        inputs = left.clone(), right.clone()
        graph = torch.cuda.CUDAGraph()
        # Of a graph that lives: torch takes no more into a pool whose last graph is gone.
        pool = next((other.pool() for other in self._graphs), None)
        torch.cuda.empty_cache()  # what other streams have freed would be held as well
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # and back, which `graph` misses where it fails
            forward(*inputs)  # kernels are compiled and loaded at a first run, workspaces made
            # Other threads may do meanwhile what only the recorded one must not.
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                outputs = forward(*inputs)
        self._graphs.add(graph)

        def replay(left: Tensor, right: Tensor) -> list[Tensor]:
            for own, given in zip(inputs, (left, right), strict=True):
                own.copy_(given)
            graph.replay()
            return [output.clone() for output in outputs]

        return replay

"""Two images in, disparity out: padding, precision and device are nobody else's business."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.inference.graphs import Forward, GraphedForward, GraphRecorder
from ea_psmnet.inference.memory_plan import MemoryPlan, pairs_at_once, plan_memory
from ea_psmnet.inference.pairs import ImageLike, Pair, as_pair
from ea_psmnet.inference.tiles import predict_in_tiles
from ea_psmnet.machine import (
    Precision,
    available_memory,
    choose_device,
    has_fast_bfloat16,
    held_memory,
    plannable,
)
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PSMNet
from ea_psmnet.models.weights import NotFiniteError, check_finite, load_model
from ea_psmnet.ops.choices import check_choice
from ea_psmnet.tables import parse_bytes

__all__ = ["DEFAULT", "StereoMatcher", "StereoResult"]

DEFAULT = "ea-psmnet-small"
"""Which of the bundled weights are taken where none are named."""


@dataclass(frozen=True, eq=False)
class StereoResult:
    """What a matcher finds out about a pair."""

    disparity: NDArray[np.float32]
    """(H, W) in pixels: the left pixel (x, y) matches the right pixel (x - disparity, y)."""


class StereoMatcher:
    """Predicts the disparity of rectified pairs of any size.

    Args:
        model: the network; it stays as it is, a copy arranged for inference works.
        device: where to compute: auto, cpu, cuda or cuda:1.
        precision: of the convolutions; attention sums and soft-argmin are float32 in any case.
        memory: bytes that the process may hold on the device, or these as text: 8GiB; None for what
            is free there now. Pairs that take more are predicted in tiles.
        cuda_graphs: for many pairs of few sizes on a card that is faster than Python (see `graphs`;
            not yet run on one). Half of `memory` is for what the graphs hold. One thread at a time.

    Raises:
        NotFiniteError: the network has NaN or infinity in its weights.
        ValueError: no such device, precision or size, or graphs on the CPU.
        TypeError: what is given for one of them, or for the network, is something else.

    Example:
        >>> matcher = StereoMatcher.load("ea-psmnet-small")
        >>> matcher(left, right).disparity.shape == left.shape[:2]
        True
    """

    def __init__(
        self,
        model: PSMNet,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        memory: int | str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        if not isinstance(model, PSMNet):
            raise TypeError(f"a {type(model).__name__} is no PSMNet: StereoMatcher.load reads one")
        check_choice("precision", precision, get_args(Precision))
        held = _bytes(memory)
        chosen = choose_device(device)
        if cuda_graphs and chosen != "cuda":
            where = "on the CPU" if chosen == "cpu" else f"on {chosen}, not on the first card"
            raise ValueError(f"CUDA graphs were asked for {where}: leave them out")
        self.device = torch.device(chosen)
        check_finite(model.state_dict(), "the network")
        self._bf16 = precision != "exact" and has_fast_bfloat16(chosen)
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        self.model = arrange_for_inference(model, dtype, self.device)
        self.max_disparity = model.config.max_disparity
        self._forward: Forward = self._eager
        self._room = (
            plannable(available_memory(self.device))
            if held is None
            else held - held_memory(self.device)
        )
        if cuda_graphs:
            self._forward = GraphedForward(self._forward, GraphRecorder())
            self._room //= 2

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        max_disparity: int | None = None,
        align_corners: bool | None = None,
        peak_reach: int | None = None,
        attention: bool = True,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        memory: int | str | None = None,
        cuda_graphs: bool = False,
    ) -> StereoMatcher:
        """A matcher from a checkpoint, or bundled weights by name; `None` takes `DEFAULT`.

        What is given overrides the checkpoint's own settings: see `load_model`.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: not a checkpoint of this network, or an impossible setting.
            TypeError: something else than these.
        """
        for name, value in (("align_corners", align_corners), ("attention", attention)):
            if not isinstance(value, bool | None):
                raise TypeError(f"{name} is {value!r}: give True or False")
        model = load_model(
            DEFAULT if path is None else path,
            max_disparity=max_disparity,
            align_corners=align_corners,
            peak_reach=peak_reach,
            attention=attention,
        )
        return cls(
            model, device=device, precision=precision, memory=memory, cuda_graphs=cuda_graphs
        )

    def __call__(self, left: ImageLike, right: ImageLike) -> StereoResult:
        """Predict the disparity of the left image.

        In images narrower than the range of disparities their width is searched; a warning says so.

        Args:
            left: array (H, W, 3) in RGB or (H, W) in grey, of uint8 or uint16; a Pillow image; or
                the path of a file.
            right: the same, rectified against it.

        Raises:
            ValueError: the images differ in size, are no pictures, or need more memory than there
                is.
            TypeError: something else was given.
            NotFiniteError: the network computes NaN or infinity.
        """
        return self.match([(left, right)])[0]

    def match(self, pairs: Sequence[tuple[ImageLike, ImageLike]]) -> list[StereoResult]:
        """Predict several pairs: those of one padded size together, as many as memory allows.

        In float32 the results are those of single pairs but for rounding.

        Args:
            pairs: left and right images, as of a single call; sizes may differ between pairs.

        Returns:
            A result a pair, in their order.

        Raises:
            ValueError, TypeError: as of a single call.
        """
        given = dict(enumerate(map(as_pair, pairs)))
        narrow = {place for place, (left, _) in given.items() if self._is_narrow(left.shape[1])}
        results = {place: self.fitting(given[place][0].shape[1])(*given[place]) for place in narrow}
        views = {place: pair for place, pair in given.items() if place not in narrow}
        for places in self._batches(views):
            found = self._predict([views[place] for place in places])
            for place, disparity in zip(places, found, strict=True):
                height, width = views[place][0].shape[:2]
                # The padding lies above and to the right.
                results[place] = StereoResult(disparity[-height:, :width].copy())
        return [results[place] for place in given]

    def fitting(self, width: int) -> StereoMatcher:
        """This matcher, or where images are narrower than its range one that searches them whole.

        A warning tells of the latter.
        """
        if not self._is_narrow(width):
            return self
        reach = _padded(0, width)[1]
        warnings.warn(
            f"the images are {width} px wide: disparities up to {reach} are searched, "
            f"not up to {self.max_disparity}",
            stacklevel=3,
        )
        other, model = copy.copy(self), copy.copy(self.model)  # of the same weights
        model.config = replace(model.config, max_disparity=reach)
        other.model, other.max_disparity = model, reach
        other._forward = other._eager
        return other

    def _eager(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """Disparities (B, H', W') of padded images (B, 3, H', W')."""
        return self.model(left, right).disparities

    def _is_narrow(self, width: int) -> bool:
        return _padded(0, width)[1] < self.max_disparity

    def plan(self, height: int, width: int) -> MemoryPlan:
        """How a pair of a size is predicted, and the memory that takes.

        Raises:
            ValueError: more than there is.
        """
        return plan_memory(*self._request(height, width))

    def _request(self, height: int, width: int) -> tuple[PSMNetConfig, tuple[int, int], int, int]:
        """What plans of memory ask for."""
        itemsize = 2 if self._bf16 else 4
        return self.model.config, _padded(height, width), itemsize, self._room

    def _batches(self, pairs: Mapping[int, Pair]) -> Iterator[list[int]]:
        """Places of the pairs to predict together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, (left, _) in pairs.items():
            groups.setdefault(_padded(*left.shape[:2]), []).append(place)
        for size, places in groups.items():
            most = pairs_at_once(*self._request(*size))
            for start in range(0, len(places), most):
                yield places[start : start + most]

    def _predict(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Disparities (B, H', W') of pairs of one padded size, with their padding."""
        left, right = (torch.cat([self._to_input(pair[side]) for pair in pairs]) for side in (0, 1))
        plan = self.plan(*left.shape[-2:])
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, self._bf16),
            contextlib.nullcontext() if self._bf16 else _full_float32(),
        ):
            if plan.is_whole:
                (disparity,) = self._forward(left, right)
            else:
                disparity = predict_in_tiles(self.model, left, right, plan.rows, plan.columns)
        found = np.asarray(disparity.float().cpu().numpy())
        if not np.isfinite(found).all():
            raise NotFiniteError(
                "the network computes NaN or infinity: its weights are damaged, or so large that "
                "they overflow"
            )
        return found

    def _to_input(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 to (1, 3, H', W') from 0 to 1, padded at the top and right as PSMNet."""
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        tensor = tensor.permute(2, 0, 1).unsqueeze(0).float() / 255
        top, right = (-side % SIZE_MULTIPLE for side in image.shape[:2])
        # Zero after normalisation is what PSMNet's features know as nothing.
        border = self.model.features.border
        return F.pad(tensor - self.model.mean, (0, right, top, 0), mode=border) + self.model.mean


def _bytes(memory: int | str | None) -> int | None:
    """Bytes of a number or text.

    Raises:
        ValueError: none at all, or no size.
        TypeError: something else.
    """
    count = parse_bytes(memory) if isinstance(memory, str) else memory
    if count is None:
        return None
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise TypeError(f"memory is a {type(memory).__name__}: give bytes, or text as 8GiB")
    if count <= 0:
        raise ValueError(f"memory is {memory}: give bytes, or text as 8GiB")
    return int(count)


def _padded(height: int, width: int) -> tuple[int, int]:
    """What the network takes images of a size as."""
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def _full_float32() -> contextlib.AbstractContextManager[None]:
    """Convolutions on a card keep all bits of float32: by default cuDNN rounds to TF32."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )

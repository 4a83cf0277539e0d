"""`StereoMatcher`: from two images of any size to disparity."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.calibration import Calibration, RawCalibration
from ea_psmnet.inference.confidence import ConfidenceMap, read_confidence, window_masses
from ea_psmnet.inference.memory_plan import MemoryPlan, pairs_at_once, plan_memory
from ea_psmnet.inference.pairs import (
    ImageLike,
    Pair,
    as_pair,
    calibrated_pair,
    resized_pair,
)
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.inference.tiles import predict_in_tiles
from ea_psmnet.inference.two_scales import FACTOR, Evidence, fused, second_count
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
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PSMNet, StereoOutput
from ea_psmnet.models.weights import NotFiniteError, check_finite, load_model, read_card
from ea_psmnet.tables import check_choice, check_range, parse_bytes

DEFAULT = "ea-light"
"""Name of the bundled weights that are used by default."""

_FURTHEST = 4096
"""Pixels of the smallest disparity, at most, in either direction."""


class StereoMatcher:
    """Predicts the disparity of rectified pairs of any size.

    Args:
        model: The network. It is not changed: a copy arranged for inference is used.
        min_disparity: Smallest disparity to search, in pixels; negative for toed-in cameras, whose
            far points have negative disparities.
        device: Device to compute on: auto, cpu, cuda or cuda:1.
        precision: Precision of the convolutions: `exact` is float32, `auto` and `fast` are bfloat16
            where the device is fast at it. Attention and soft-argmin always sum in float32.
        memory: Bytes that the process may hold on the device, as a number or as text (8GiB); None
            for the memory that is free now. Pairs that need more are predicted in tiles.
        two_scales: Whether to match every pair again at twice its size. The second pass counts
            where the first one has nearly its disparity at or around the pixel, elsewhere the
            surer one does: sharper edges and fewer errors, at up to nine times the time and seven
            times the memory.

    Raises:
        NotFiniteError: The weights of the network have NaN or infinity.
        ValueError: No such device or precision, or an invalid size of memory.
        TypeError: An argument has the wrong type.

    Example:
        >>> matcher = StereoMatcher.load("ea-psmnet-small")
        >>> matcher(left, right).disparity.shape == left.shape[:2]
        True
    """

    def __init__(
        self,
        model: PSMNet,
        *,
        min_disparity: int = 0,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        memory: int | str | None = None,
        two_scales: bool = False,
    ) -> None:
        if not isinstance(model, PSMNet):
            raise TypeError(
                f"a {type(model).__name__} is not a PSMNet: StereoMatcher.load reads one"
            )
        check_choice("precision", precision, get_args(Precision))
        if not isinstance(two_scales, bool):
            raise TypeError(f"two_scales is {two_scales!r}: give True or False")
        held = _bytes(memory)
        chosen = choose_device(device)
        self.device = torch.device(chosen)
        check_finite(model.state_dict(), "the network")
        self._bf16 = precision != "exact" and has_fast_bfloat16(chosen)
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        self.model = arrange_for_inference(model, dtype, self.device)
        self.min_disparity = _minimum(min_disparity)
        self.max_disparity = model.config.max_disparity
        """Number of disparities searched, from `min_disparity` on."""
        self._source: Path | str | None = None
        self.two_scales = two_scales
        self.confidence_maps: dict[bool, ConfidenceMap] = {}
        """Maps that were read, for one and for two scales."""
        self._room = (
            plannable(available_memory(self.device))
            if held is None
            else held - held_memory(self.device)
        )

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        min_disparity: int = 0,
        max_disparity: int | None = None,
        align_corners: bool | None = None,
        peak_reach: int | None = None,
        attention: bool = True,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        memory: int | str | None = None,
        two_scales: bool = False,
    ) -> StereoMatcher:
        """Make a matcher from a checkpoint, or from bundled weights by name (default: `DEFAULT`).

        Arguments are those of `StereoMatcher`, or override the checkpoint's own settings: see
        `load_model`.

        Raises:
            FileNotFoundError: There is no such checkpoint.
            NotFiniteError: The weights have NaN or infinity.
            ValueError: The file is not a checkpoint of this network, or a setting is impossible.
            TypeError: An argument has the wrong type.
        """
        for name, value in (("align_corners", align_corners), ("attention", attention)):
            if not isinstance(value, bool) and (value is not None or name == "attention"):
                raise TypeError(f"{name} is {value!r}: give True or False")
        path = DEFAULT if path is None else path
        model = load_model(
            path,
            max_disparity=max_disparity,
            align_corners=align_corners,
            peak_reach=peak_reach,
            attention=attention,
        )
        matcher = cls(
            model,
            min_disparity=min_disparity,
            device=device,
            precision=precision,
            memory=memory,
            two_scales=two_scales,
        )
        matcher._source = path
        return matcher

    @property
    def card(self) -> dict[str, Any]:
        """Description of the weights, if a file beside them has one: see `read_card`."""
        return {} if self._source is None else read_card(self._source)

    @property
    def confidence_map(self) -> ConfidenceMap:
        """Map from the evidence to confidence: see `read_confidence`."""
        return self.map_for(self.two_scales)

    def map_for(self, two_scales: bool) -> ConfidenceMap:
        """`confidence_map` of a matcher of the same weights at one or at two scales.

        The choice between two scales depends on the map for one.
        """
        if two_scales not in self.confidence_maps:
            self.confidence_maps[two_scales] = read_confidence(self._source, two_scales=two_scales)
        return self.confidence_maps[two_scales]

    def __call__(
        self,
        left: ImageLike,
        right: ImageLike,
        *,
        calibration: Calibration | RawCalibration | None = None,
        confidence: bool = False,
        right_view: bool = False,
    ) -> StereoResult:
        """Predict the disparity of the left image.

        In images narrower than the range of disparities their width is searched, with a warning.

        Args:
            left: An array (H, W, 3) in RGB, (H, W, 4) with alpha or (H, W) in grey, of uint8 or
                uint16; a Pillow image; or the path of a file.
            right: The right image; the pair is rectified, or `calibration` is a `RawCalibration`.
            calibration: Calibration for the result's depth and points, scaled to the size of the
                images. With a `RawCalibration` the pair is rectified first, and the result is that
                of the rectified pair.
            confidence: Whether to compute the probability that a pixel's error is below 1 pixel.
            right_view: Whether to predict the right view's disparity as well, which doubles the
                time.

        Raises:
            ValueError: The images differ in size, are not pictures, or need more memory than there
                is.
            FileNotFoundError, OSError: An image file does not exist, or cannot be read.
            TypeError: An argument has the wrong type.
            NotFiniteError: The network computes NaN or infinity.
        """
        pair, fitting = calibrated_pair(as_pair((left, right)), calibration)
        result = self.match([pair], confidence=confidence, right_view=right_view)[0]
        return replace(result, calibration=fitting)

    def match(
        self,
        pairs: Sequence[tuple[ImageLike, ImageLike]],
        *,
        confidence: bool = False,
        right_view: bool = False,
    ) -> list[StereoResult]:
        """Predict several pairs; pairs of one padded size form batches that fit into memory.

        Arguments and errors are those of a single call; sizes may differ between pairs. In float32
        the results are those of single pairs, except for rounding.

        Returns:
            One result for each pair, in their order.
        """
        given = dict(enumerate(map(as_pair, pairs)))
        results: dict[int, StereoResult] = {}
        views = {}
        for place, pair in given.items():
            matcher = self.fitting(pair[0].shape[1])
            if matcher is self:
                views[place] = pair
            else:
                results[place] = matcher._results([pair], confidence, right_view)[0]
        for places in self._batches(views):
            found = self._results([views[place] for place in places], confidence, right_view)
            results |= zip(places, found, strict=True)
        return [results[place] for place in given]

    def evidence(self, left: ImageLike, right: ImageLike) -> Evidence:
        """Predict disparity and the evidence for its confidence; arguments as for a call."""
        pair = as_pair((left, right))
        matcher = self.fitting(pair[0].shape[1])
        ((disparity, masses),) = matcher._predict([pair], confidence=lambda masses: masses)
        assert masses is not None
        return Evidence(disparity, masses)

    def _results(
        self, pairs: Sequence[Pair], confidence: bool, right_view: bool
    ) -> list[StereoResult]:
        """Predict pairs of one padded size at once."""
        found = self._predict(pairs, confidence=self.confidence_map if confidence else None)
        results = [
            StereoResult(disparity, left, sure)
            for (disparity, sure), (left, _) in zip(found, pairs, strict=True)
        ]
        if not right_view:
            return results
        # In a mirror the right image is the left one of a pair.
        mirrored = [(right[:, ::-1].copy(), left[:, ::-1].copy()) for left, right in pairs]
        return [
            replace(result, right=disparity[:, ::-1].copy())
            for result, (disparity, _) in zip(results, self._predict(mirrored), strict=True)
        ]

    def fitting(self, width: int) -> StereoMatcher:
        """This matcher, or, with a warning, one that searches images narrower than its range."""
        reach = _padded(0, width + self._margin)[1]
        if reach >= self.max_disparity:
            return self
        first = self.min_disparity
        warnings.warn(
            f"the images are {width} px wide: disparities up to {first + reach} are searched, "
            f"not up to {first + self.max_disparity}",
            stacklevel=3,
        )
        return self.searching(self.min_disparity, reach)

    def searching(
        self, minimum: int, count: int, *, two_scales: bool | None = None
    ) -> StereoMatcher:
        """A matcher of the same weights that searches another range.

        Args:
            minimum: Smallest disparity in pixels; negative for toed-in cameras.
            count: Number of disparities, a multiple of 16.
            two_scales: Whether it matches at two scales; None for as this one does.

        Raises:
            ValueError: The range is impossible.
            TypeError: An argument has the wrong type.
        """
        other, model = copy.copy(self), copy.copy(self.model)
        model.config = replace(model.config, max_disparity=count)
        other.model, other.max_disparity = model, count
        other.min_disparity = _minimum(minimum)
        other.two_scales = self.two_scales if two_scales is None else two_scales
        return other

    def plan(self, height: int, width: int) -> MemoryPlan:
        """Plan how pairs of a size are predicted in one pass, and the memory that this takes.

        The second of two passes is one of twice the size and up to twice the range.

        Raises:
            ValueError: It takes more memory than there is.
        """
        return plan_memory(*self._request(height, width + self._margin))

    @property
    def _margin(self) -> int:
        """Columns that are added to images: see `_moved`."""
        return max(0, -self.min_disparity)

    def _request(self, height: int, width: int) -> tuple[PSMNetConfig, tuple[int, int], int, int]:
        """Arguments of `plan_memory`."""
        itemsize = 2 if self._bf16 else 4
        return self.model.config, _padded(height, width), itemsize, self._room

    def _batches(self, pairs: Mapping[int, Pair]) -> Iterator[list[int]]:
        """Yield the indices of pairs that are predicted together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, (left, _) in pairs.items():
            height, width = left.shape[:2]
            groups.setdefault(_padded(height, width + self._margin), []).append(place)
        for size, places in groups.items():
            most = pairs_at_once(*self._request(*size)) if len(places) > 1 else 1
            for start in range(0, len(places), most):
                yield places[start : start + most]

    def _predict(
        self, pairs: Sequence[Pair], *, confidence: Callable[[Tensor], Tensor] | None = None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Predict pairs of one padded size.

        Args:
            pairs: The pairs.
            confidence: Function from the masses (B, 3, H', W') to (B, ..., H', W').

        Returns:
            The disparity (H, W) of each pair, and what `confidence` makes of it (..., H, W).
        """
        if not self.two_scales:
            return self._predict_once(pairs, confidence)
        found = []
        coarse = self._predict_once(pairs, self.map_for(False))
        for pair, (disparity, sure) in zip(pairs, coarse, strict=True):
            evidence = self._fused(pair, disparity, sure)
            masses = torch.from_numpy(evidence.masses).unsqueeze(0)
            told = None if confidence is None else confidence(masses)[0].numpy()
            found.append((evidence.disparity, told))
        return found

    def _fused(
        self, pair: Pair, disparity: NDArray[np.float32], sure: NDArray[np.float32] | None
    ) -> Evidence:
        """Match a pair again at twice its size, given the result of the first pass."""
        assert sure is not None
        enlarged = resized_pair(pair, FACTOR)
        most = min(
            FACTOR * self.max_disparity,
            _padded(0, FACTOR * (pair[0].shape[1] + self._margin))[1],
        )
        count = second_count(disparity, self.min_disparity, most, SIZE_MULTIPLE)
        try:
            second = self.searching(FACTOR * self.min_disparity, count)
            ((fine, finely_sure),) = second._predict_once([enlarged], self.map_for(False))
        except ValueError as error:
            raise type(error)(f"the second of two scales: {error}") from error
        assert finely_sure is not None
        return fused((disparity, sure), (fine, finely_sure))

    def _predict_once(
        self, pairs: Sequence[Pair], confidence: Callable[[Tensor], Tensor] | None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Predict pairs at their own scale; arguments and result as for `_predict`."""
        moved = [_moved(pair, self.min_disparity) for pair in pairs]
        left, right = (
            torch.cat([self._to_input(view) for view in views])
            for views in zip(*moved, strict=True)
        )
        plan = plan_memory(*self._request(*left.shape[-2:]))
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, self._bf16),
            contextlib.nullcontext() if self._bf16 else _full_float32(),
        ):
            if plan.is_whole:
                output = self.model(left, right)
            else:
                output = predict_in_tiles(self.model, left, right, plan.rows, plan.columns)
            sure = None if confidence is None else confidence(self._masses(output)).cpu().numpy()
        found = output.disparity.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise NotFiniteError(
                "the network computes NaN or infinity: its weights are damaged, or so large that "
                "they overflow"
            )
        return [
            (
                self._without_padding(found[place], image) + np.float32(self.min_disparity),
                None if sure is None else self._without_padding(sure[place], image),
            )
            for place, (image, _) in enumerate(pairs)
        ]

    def _masses(self, output: StereoOutput) -> Tensor:
        return window_masses(output.scores[-1], output.disparity.float(), self.model.head.first)

    def _without_padding(
        self, values: NDArray[np.float32], image: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Crop (..., H', W') to the size of an image, below padding and right of the margin."""
        height, width = image.shape[:2]
        return values[..., -height:, self._margin : self._margin + width].copy()

    def _to_input(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 to (1, 3, H', W') from 0 to 1, padded at the top and right."""
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        tensor = tensor.permute(2, 0, 1).unsqueeze(0).float() / 255
        top, right = (-side % SIZE_MULTIPLE for side in image.shape[:2])
        # PSMNet's features were trained with zeros after normalisation as padding.
        border = self.model.features.border
        return F.pad(tensor - self.model.mean, (0, right, top, 0), mode=border) + self.model.mean


def _bytes(memory: int | str | None) -> int | None:
    """Convert a number or text to bytes; raises a ValueError or a TypeError if it is not a size."""
    count = parse_bytes(memory) if isinstance(memory, str) else memory
    if count is None:
        return None
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise TypeError(f"memory is a {type(memory).__name__}: give bytes, or text as 8GiB")
    if count <= 0:
        raise ValueError(f"memory is {memory}: give bytes, or text as 8GiB")
    return int(count)


def _minimum(minimum: int) -> int:
    """Check a smallest disparity; raises a TypeError or a ValueError if it is impossible."""
    if not isinstance(minimum, Integral) or isinstance(minimum, bool):
        raise TypeError(f"min_disparity is a {type(minimum).__name__}: give a whole number")
    check_range("min_disparity", minimum, -_FURTHEST, _FURTHEST)
    return int(minimum)


def _moved(pair: Pair, columns: int) -> Pair:
    """Views for a network that counts disparities from `columns` on: the right one is moved.

    Where it moves to the left, both views get as many columns more, so that none of it is lost.
    Borders are replicated.
    """
    left, right = pair
    if columns > 0:
        return left, np.pad(right, ((0, 0), (columns, 0), (0, 0)), mode="edge")[:, :-columns]
    margins = [((0, 0), side, (0, 0)) for side in ((-columns, 0), (0, -columns))]
    return np.pad(left, margins[0], mode="edge"), np.pad(right, margins[1], mode="edge")


def _padded(height: int, width: int) -> tuple[int, int]:
    """Height and width of images after padding."""
    return height + -height % SIZE_MULTIPLE, width + -width % SIZE_MULTIPLE


def _full_float32() -> contextlib.AbstractContextManager[None]:
    """Context that keeps all bits of float32: on GPUs cuDNN rounds it to TF32 by default."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )

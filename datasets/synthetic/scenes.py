"""The dataset of synthetic scenes, rendered on access."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, get_args, overload

from ea_psmnet.datasets.names import Split
from ea_psmnet.datasets.synthetic.draw import draw_scene
from ea_psmnet.datasets.synthetic.kinds import KINDS
from ea_psmnet.datasets.synthetic.render import Look, RenderedScene, render
from ea_psmnet.datasets.synthetic.textures import load_atlas
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import check_choice, check_range

GENERATOR = 7
"""Version of the generator; incremented by changes that alter the scene of a seed and number."""

_WORD = 2**32
"""Upper limit of seeds and numbers: each is one 32-bit word of a generator's seed."""

_MOST_SIDE, _MOST_DISPARITY = 2**14, 4096
"""Largest side and disparity in pixels, to limit time and memory."""


class SyntheticScenes(Sequence[StereoSample]):
    """Rendered stereo pairs, made on access; slicing renders nothing.

    A seed, a split and a number determine a scene; nothing is stored, so any number of workers can
    share the work. Textures are built once per process, at the first scene.

    Example:
        >>> scenes = SyntheticScenes(seed=0, size=(256, 512), count=1000)
        >>> scenes[3].name
        'synthetic/0/000003'
    """

    numbers: range
    """Numbers of the scenes in this sequence."""
    has_right_truth = True
    """Whether `mirrored` is supported."""

    def __init__(
        self,
        *,
        seed: int = 0,
        split: Split = "train",
        size: tuple[int, int] = (256, 512),
        count: int = 1000,
        max_disparity: int = 192,
        lighting: bool = True,
        noise: bool = True,
        supersample: int = 2,
        textures: str | Path | None = None,
        kind: str | None = None,
        device: str = "cpu",
    ) -> None:
        """Describe the scenes without rendering any.

        Args:
            seed: Seed of the series of scenes.
            split: `train` or `test`; the two splits of a seed have no scene in common.
            size: Height and width in pixels.
            count: Length of the sequence; `render` accepts larger numbers.
            max_disparity: Largest disparity in pixels; less than one percent of an image exceeds
                it.
            lighting: Whether to render light; otherwise surfaces have their own colours.
            noise: Whether to simulate the camera's sensor.
            supersample: Rays per side of a pixel at edges; 1 is off.
            textures: Folder of photographs to add to the procedural textures.
            kind: Key of `KINDS`, for scenes of that kind only; all kinds by default.
            device: Torch device on which rays are cast.

        Raises:
            ValueError: An argument is out of range.
        """
        check_choice("split", split, get_args(Split))
        check_range("seed", seed, 0, _WORD - 1)
        check_range("max_disparity", max_disparity, 4, _MOST_DISPARITY)
        for name, side in zip(("height", "width"), size, strict=True):
            check_range(name, side, 16, _MOST_SIDE)
        check_range("count", count, 0, _WORD)
        check_range("supersample", supersample, 1, 16)
        if kind is not None:
            check_choice("kind", kind, KINDS)
        # NumPy's integers become Python's.
        self.seed, self.split, self.max_disparity = int(seed), split, int(max_disparity)
        self.size = int(size[0]), int(size[1])
        self.numbers = range(int(count))
        self.look = Look(lighting, noise, int(supersample))
        self.textures = None if textures is None else Path(textures)
        self.kind, self.device = kind, device

    @property
    def settings(self) -> dict[str, Any]:
        """All parameters of the scenes except split and numbers, as plain values."""
        return {
            "generator": GENERATOR,
            "seed": self.seed,
            "size": list(self.size),
            "max_disparity": self.max_disparity,
            **vars(self.look),
            "textures": None if self.textures is None else str(self.textures.resolve()),
            "kind": self.kind,
        }

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> StereoSample: ...

    @overload
    def __getitem__(self, index: slice) -> SyntheticScenes: ...

    def __getitem__(self, index: int | slice) -> StereoSample | SyntheticScenes:
        """Return the sample at an index, which may be negative, or a slice of the sequence.

        Raises:
            IndexError: The index is out of range.
        """
        if isinstance(index, slice):
            part = copy(self)
            part.numbers = self.numbers[index]
            return part
        number = self._number(index)
        return self.render(number).sample(self.name(number))

    def mirrored(self, index: int) -> StereoSample:
        """Return the mirrored sample at an index, with the ground truth of the right view.

        Raises:
            IndexError: The index is out of range.
        """
        number = self._number(index)
        return self.render(number).mirrored().sample(f"{self.name(number)}/mirrored")

    def _number(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self.numbers[index]

    def prepare(self) -> None:
        """Build the textures now, so that worker processes forked later share them."""
        load_atlas(self.textures, self.device)

    def name(self, number: int) -> str:
        """Return the name of a scene's sample."""
        series = f"{self.seed}" if self.split == "train" else f"{self.split}/{self.seed}"
        return f"synthetic/{series}/{number:06d}"

    def render(self, number: int) -> RenderedScene:
        """Render both views of a scene with all ground truth.

        Args:
            number: Number of the scene, 0 or more; it may exceed the length of the sequence.
        """
        if not 0 <= number < _WORD:
            raise IndexError(f"scene {number}: expected a number from 0 to {_WORD - 1}")
        scene = draw_scene(
            self.seed, number, self.size, self.max_disparity, self.kind, split=self.split
        )
        return render(scene, load_atlas(self.textures, self.device), self.look, self.device)

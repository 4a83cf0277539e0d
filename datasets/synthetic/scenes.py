"""The scenes as a dataset: an endless stream cut off at a count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, get_args, overload

from datasets.sceneflow import Split
from datasets.synthetic.draw import draw_scene
from datasets.synthetic.render import Look, RenderedScene, render
from datasets.synthetic.textures import load_atlas
from ea_psmnet.sample import StereoSample

GENERATOR = 5
"""Raised by every change that shows other scenes under the same seed and number."""

_WORD = 2**32
"""Seeds and numbers are below this: each is one word of what starts a random generator."""

_MOST_SIDE, _MOST_DISPARITY = 2**14, 4096
"""In pixels; beyond them rendering would take days, or more memory than there is."""


class SyntheticScenes(Sequence[StereoSample]):
    """Rendered stereo pairs, made when they are asked for. A slice renders nothing.

    A seed, a split and a number decide a scene wholly; nothing is stored, so any number of workers
    may share the work. The textures are built once a process, at the first scene.

    Example:
        >>> scenes = SyntheticScenes(seed=0, size=(256, 512), count=1000)
        >>> scenes[3].name
        'synthetic/0/000003'
    """

    numbers: range
    """The numbers of the scenes of this sequence."""
    has_right_truth = True
    """Whether `mirrored` can be asked for."""

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
        textures: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Describe the scenes; render nothing yet.

        Args:
            seed: of the series.
            split: `train` or `test`: two series of the same seed without a common scene.
            size: height and width in pixels.
            count: length of the sequence; `render` goes on beyond it.
            max_disparity: less than one percent of a picture lies above it, in pixels.
            lighting: false leaves the surfaces' own colours.
            noise: false leaves out what a camera's sensor does.
            supersample: rays a side of a pixel at edges; 1 is off.
            textures: folder of photographs to use beside the procedural textures.
            device: where rays are cast, as torch names it.

        Raises:
            ValueError: an argument is out of its range.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}, expected {' or '.join(get_args(Split))}")
        self.seed, self.split = _check("seed", seed, 0, _WORD - 1), split
        self.max_disparity = _check("max_disparity", max_disparity, 4, _MOST_DISPARITY)
        height, width = size
        self.size = _check("height", height, 16, _MOST_SIDE), _check("width", width, 16, _MOST_SIDE)
        self.numbers = range(_check("count", count, 0, _WORD))
        self.look = Look(lighting, noise, _check("supersample", supersample, 1, 16))
        self.textures, self.device = textures, device

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the scenes but split and numbers, as plain values."""
        return {
            "generator": GENERATOR,
            "seed": self.seed,
            "size": list(self.size),
            "max_disparity": self.max_disparity,
            **vars(self.look),
            "textures": None if self.textures is None else str(self.textures.resolve()),
        }

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> StereoSample: ...

    @overload
    def __getitem__(self, index: slice) -> SyntheticScenes: ...

    def __getitem__(self, index: int | slice) -> StereoSample | SyntheticScenes:
        """The sample at this place, counted from the end if negative; or some of the scenes.

        Raises:
            IndexError: the sequence is shorter.
        """
        if isinstance(index, slice):
            part = copy(self)
            part.numbers = self.numbers[index]
            return part
        number = self._number(index)
        return self.render(number).sample(self.name(number))

    def mirrored(self, index: int) -> StereoSample:
        """The sample at this place as a mirror shows it, with the right view's truth.

        Raises:
            IndexError: the sequence is shorter.
        """
        number = self._number(index)
        return self.render(number).mirrored().sample(f"{self.name(number)}/mirrored")

    def _number(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self.numbers[index]

    def __iter__(self) -> Iterator[StereoSample]:
        return (self[k] for k in range(len(self)))

    def prepare(self) -> None:
        """Build the textures now, so that worker processes forked later share them."""
        load_atlas(self.textures, self.device)

    def name(self, number: int) -> str:
        """The name of a scene's sample."""
        series = f"{self.seed}" if self.split == "train" else f"{self.split}/{self.seed}"
        return f"synthetic/{series}/{number:06d}"

    def render(self, number: int, kind: str | None = None) -> RenderedScene:
        """Both views and all truth of a scene; any number from 0 on.

        Args:
            number: of the scene.
            kind: forces a kind of scene; drawn with the scene if none.
        """
        if not 0 <= number < _WORD:
            raise IndexError(f"scene {number}: expected a number from 0 to {_WORD - 1}")
        scene = draw_scene(self.seed, number, self.size, self.max_disparity, kind, split=self.split)
        return render(scene, load_atlas(self.textures, self.device), self.look, self.device)


def _check(name: str, value: int, low: int, high: int) -> int:
    """A number from `low` to `high`, NumPy's too, as Python's own; raises if it is none."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low} to {high}")
    return int(value)

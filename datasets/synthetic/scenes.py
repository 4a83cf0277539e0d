"""The scenes as a dataset: an endless stream cut off at a count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from ea_psmnet.sample import StereoSample

from .draw import draw_scene
from .render import Look, RenderedScene, render
from .textures import load_atlas


class SyntheticScenes(Sequence[StereoSample]):
    """Rendered stereo pairs, made when they are asked for.

    A seed and a number decide a scene wholly; nothing is stored, so any number of workers may
    share the work. The textures are built once a process, at the first scene.

    Example:
        >>> scenes = SyntheticScenes(seed=0, size=(256, 512), count=1000)
        >>> scenes[3].name
        'synthetic/0/000003'
    """

    def __init__(
        self,
        *,
        seed: int = 0,
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
            size: height and width in pixels.
            count: length of the sequence; `render` goes on beyond it.
            max_disparity: less than one percent of a picture lies above it, in pixels.
            lighting: false leaves the surfaces' own colours.
            noise: false leaves out what a camera's sensor does.
            supersample: rays a side of a pixel at edges; 1 is off.
            textures: folder of photographs to use beside the procedural textures.
            device: where rays are cast, as torch names it.

        Raises:
            ValueError: a number is out of its range.
        """
        if seed < 0 or count < 0 or min(size) < 16 or max_disparity < 4 or supersample < 1:
            raise ValueError(
                "expected seed >= 0, count >= 0, size >= (16, 16), max_disparity >= 4 and "
                f"supersample >= 1, got {seed}, {count}, {size}, {max_disparity}, {supersample}"
            )
        self.seed, self.size, self.max_disparity = seed, size, max_disparity
        self._length = count  # `count` is a method of every Sequence
        self.look = Look(lighting, noise, supersample)
        self.textures, self.device = textures, device

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> StereoSample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[StereoSample]: ...

    def __getitem__(self, index: int | slice) -> StereoSample | Sequence[StereoSample]:
        """The sample of this number.

        Raises:
            IndexError: it is not in the range of 0 to `count` - 1.
        """
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self.render(index).sample(self.name(index))

    def __iter__(self) -> Iterator[StereoSample]:
        return (self[k] for k in range(len(self)))

    def prepare(self) -> None:
        """Build the textures now, so that worker processes forked later share them."""
        load_atlas(self.textures, self.device)

    def name(self, number: int) -> str:
        """The name of a scene's sample."""
        return f"synthetic/{self.seed}/{number:06d}"

    def render(self, number: int, kind: str | None = None) -> RenderedScene:
        """Both views and all truth of a scene; any number from 0 on.

        Args:
            number: of the scene.
            kind: forces a kind of scene; drawn with the scene if none.
        """
        if number < 0:
            raise IndexError(f"scene {number}: expected a number from 0 on")
        scene = draw_scene(self.seed, number, self.size, self.max_disparity, kind)
        return render(scene, load_atlas(self.textures, self.device), self.look, self.device)

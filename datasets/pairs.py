"""Frames of trees that call both views' files alike, which most synthetic sets do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.frames import Frame, View
from datasets.templates import Files, every_part, matched

__all__ = ["both_views", "frames_of_parts", "frames_of_views"]

Views = tuple[Files, Files]
"""Files of the left and of the right view."""


def both_views(
    folder: Path,
    template: str,
    suffix: str = ".png",
    names: tuple[str, str] = ("left", "right"),
) -> Views:
    """Files of a template in which `VIEW` stands for the names of the left and the right view."""
    left, right = (Files(folder, template.replace("VIEW", view), (suffix,)) for view in names)
    return left, right


def frames_of_parts(
    base: Path,
    parts: Iterable[str],
    templates: tuple[str, str],
    decode: Callable[[Path], NDArray[np.float32]],
    layout: str,
) -> Iterator[Frame]:
    """Frames of the parts that are there: folders with one tree of JPEG images and PNG truth each.

    Args:
        base: Where the parts lie.
        parts: Names of their folders.
        templates: Of the images and of the truth, with `VIEW`.
        decode: Reads a truth, as `View.decode`.
        layout: How the tree was understood, for messages.

    Raises:
        FileNotFoundError: there is no part, or files of frames are missing.
    """
    there = [part for part in parts if (base / part).is_dir()]
    if not there:
        raise FileNotFoundError(f"{base}: no {' or '.join(parts)} folder; {layout}")
    return every_part(
        frames_of_views(
            both_views(base / part, templates[0], ".jpg"),
            both_views(base / part, templates[1]),
            decode,
            layout,
            part,
        )
        for part in there
    )


def frames_of_views(
    images: Views,
    truths: Views,
    decode: Callable[[Path], NDArray[np.float32]],
    layout: str,
    prefix: str = "",
) -> Iterator[Frame]:
    """Frames of matched files, sorted by key; the right view's truth may be missing.

    Args:
        images: Of both views.
        truths: Of both views.
        decode: Reads a truth, as `View.decode`.
        layout: How the tree was understood, for messages.
        prefix: What names begin with. The part of a frame is the first piece of its name.
    """
    right_truth = truths[1].find()
    for key, left, right, truth in matched(*images, truths[0], layout):
        name = "/".join((*filter(None, (prefix,)), *key))
        partner = View(right, right_truth.get(key), decode)
        yield Frame(View(left, truth, decode), partner, name, name.split("/")[0], layout=layout)

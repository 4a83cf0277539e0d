"""Pairs listed in a text file."""

from __future__ import annotations

from pathlib import Path

from ea_psmnet.datasets.decoders import is_set
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.pair_lists import COLUMNS, ListedPair, is_file, read_pair_list, shown


class PairList(FrameDataset):
    """Pairs listed in a file, in its order.

    The form is that of `ea_psmnet.pair_lists`: `left right disparity` on each line, as in the lists
    of GwcNet and OpenStereo, or a table whose first line names the columns: left, right, disparity,
    and optionally nonocc (an image that is not 0 where the pixel is non-occluded) and
    disparity_right.

    ```
    training/image_2/000000_10.png training/image_3/000000_10.png training/disp_occ_0/000000_10.png
    ```

    Disparities are `.pfm`, `.png` (KITTI) or `.npy` files for `ea_psmnet.files.read_disparity`.
    Lists of test images without ground truth are rejected, as are pairs of an image with itself.

    Data: your own, or lists published with the code of other projects; licence: that of the pairs.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        base: str | Path | None = None,
        require_truth: bool = True,
    ) -> None:
        """Read the list; the pairs are read on access.

        Args:
            root: The list file.
            base: Folder that the paths are relative to; by default the folder of the list, or the
                working directory if the first image exists only there.
            require_truth: Whether a pair without ground truth is an error; otherwise it has no
                valid pixels.
        """
        needed = COLUMNS[: 3 if require_truth else 2]
        super().__init__(map(_frame, read_pair_list(Path(root), needed, base=base)))


def _frame(pair: ListedPair) -> Frame:
    files = pair.files
    for file in files.values():
        if not is_file(file):
            raise FileNotFoundError(
                f"{pair.place}: {shown(file)} does not exist; run in the folder that the paths are "
                "relative to (in Python, pass base=)"
            )
    masks = {"nonocc": Mask(files["nonocc"], is_set)} if "nonocc" in files else {}
    return Frame(
        View(files["left"], files.get("disparity"), masks=masks),
        View(files["right"], files.get("disparity_right")),
        pair.name,
    )

"""Synthetic scenes: ray-cast stereo pairs with exact disparity.

A seed, a split and a number determine a scene. `scene` describes what is rendered; `shapes`,
`outlines`, `body`, `cast`, `patterns`, `textures`, `shading`, `sensor` and `render` render it;
`sculpture`, `palette`, `things`, `kinds` and `draw` draw random scenes; `scenes` is the dataset and
`writer` writes it to disk.
"""

from ea_psmnet.datasets.synthetic.kinds import KINDS
from ea_psmnet.datasets.synthetic.render import Look, RenderedScene, render
from ea_psmnet.datasets.synthetic.scene import Scene
from ea_psmnet.datasets.synthetic.scenes import SyntheticScenes
from ea_psmnet.datasets.synthetic.writer import write_sceneflow

__all__ = [
    "KINDS",
    "Look",
    "RenderedScene",
    "Scene",
    "SyntheticScenes",
    "render",
    "write_sceneflow",
]

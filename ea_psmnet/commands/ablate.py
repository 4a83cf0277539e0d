"""`ablate`: the effect of a choice in the network, over several seeds."""

from __future__ import annotations

from typing import Annotated

import tyro

from ea_psmnet.experiments.ablation_config import AblationConfig, Question


def ablate(
    question: tyro.conf.Positional[Question],
    config: Annotated[AblationConfig, tyro.conf.arg(name="")],
    *,
    threads: int | None = None,
) -> None:
    """Train and evaluate variants with several seeds: mean, deviation, paired differences.

    normalisation is Table 8 of Shen et al., WACV 2021 (none, scaling, softmax), sites Table 9,
    key-channels Table 10; mechanism compares attention mechanisms at the same place, heads and
    positions vary options of efficient attention. The same command continues after an interruption.
    A run that diverges is also a result. Writes ablation.json, ablation.md and ablation.png after
    every run.

    Args:
        question: The part of the network that is varied.
        config: Configuration of training and evaluation.
        threads: Number of CPU threads; default: one for each core, or OMP_NUM_THREADS.
    """
    from ea_psmnet.experiments.ablation import ablate as run
    from ea_psmnet.experiments.ablation import ablation_markdown
    from ea_psmnet.experiments.plots import ablation_plot
    from ea_psmnet.files import write_image, write_json, write_text
    from ea_psmnet.machine import use_threads

    use_threads(threads)
    text = ""
    for ablation in run(question, config):
        text = ablation_markdown(ablation)
        write_json(config.out / "ablation.json", ablation.to_dict())
        write_text(config.out / "ablation.md", f"{text}\n")
        write_image(config.out / "ablation.png", ablation_plot(ablation))
    print(text)

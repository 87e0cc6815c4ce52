"""The QRPO paper's study of the number of references on Magpie-Air: 1, 3, 10, 25 and 50, each with its grid.

    qrpo-jax --config=paper_magpie_llama_scaling --workdir=runs/scaling

45 runs, 9 for each number, of which the selection half of held-out prompts chooses one. Stage `reference` runs once for
all. For the off-policy curve, whose reward rises with their number, add the sets of `configs/paper_magpie_llama.py`:

    --config.prompts.layout=qrpo_offpolicy --config.select.units=offpolicy2best
"""

from ml_collections import ConfigDict

from configs import paper, paper_magpie_llama


def get_config() -> ConfigDict:
    config = paper_magpie_llama.get_config()
    config.sweep = paper.sweep(paper_magpie_llama.GRIDS, "references")
    config.collect.method = ("select.reference_count",)
    return config

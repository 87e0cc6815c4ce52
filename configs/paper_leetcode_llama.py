"""The QRPO paper's code experiment (arXiv 2507.08068): Llama-3.1-Tulu-3-8B-SFT on LeetCodeDataset with unit tests.

Data: one of the authors' data sets with 50 reference completions a problem and the share of tests that each passes,
from the collection huggingface.co/collections/skandermoalla/qrpo-reference-datasets: the offline one for LeetCode and
this policy without SFT. 2,563 problems to train on and 223 held out, with at least 20 tests. It is trained on the
references themselves: 10 pairs of the first 20, with these 20 as references, as in the authors' set
`offpolicy10random`, which repeats each problem for that. Name it on the command line,
`--config.prompts.source=hf:ORG/NAME`, or put its Parquet files where the default looks:

    qrpo-jax --config=paper_leetcode_llama --workdir=runs/reference --config.stages=reference
    qrpo-jax --config=paper_leetcode_llama --workdir=runs/leetcode --fork=runs/reference
    python -m configs.paper paper_leetcode_llama qrpo | \
      xargs -L1 qrpo-jax --config=paper_leetcode_llama --fork=runs/reference

The second line is one point of the grid, the third all 9 of it; GRIDS has those of the baselines. Which point of its
grid each published figure comes from is not known here. The pairs are drawn at random from the 20, where the authors
took neighbours. A completion counts among its own references, as it did there; select.exclude_own=True leaves it out.

SFT on correct solutions, which half of the published runs begin with, is a run of its own, because these rows are
read without the solutions:

    qrpo-jax --config=paper_leetcode_llama --workdir=runs/sft --config.stages=sft,export --config.prompts.layout=code \
      --config.prompts.source=hf:newfacade/LeetCodeDataset

Hardware: the authors trained on 2 nodes of 4 GH200, within a limit of 3 hours a run. For 8 v5p chips:

    qrpo-jax --config=paper_leetcode_llama --workdir=runs/compile --config.stages=compile \
      --config.model.path=configs/shapes/tulu3_8b

Its step is that of paper_magpie_llama.

Tokens: 201 steps of 128 pairs, at most 0.10 G tokens in all; how many fewer it is the first lines of stage train say.

Expected (table 2): average share of tests passed on held-out problems, in %, with its error over 3 seeds:

    initial 20.9 (0.5)    SFT on correct solutions 18.8 (1.1)
    DPO     30.2 (1.4)    SimPO                    22.3 (1.4)
    REBEL   26.1 (1.8)    QRPO                     32.7 (1.0)

Stage evaluate gives the same share, over the tests that this package's sandbox runs (docs/data.md), on all held-out
problems; the authors report half of these. None of these figures has been repeated with this package.
"""

from ml_collections import ConfigDict

from configs import paper

GRIDS: dict[str, paper.Grid] = {
    "qrpo": paper.grid("qrpo", 3e-3, 1e-2, 3e-2),
    "dpo": paper.grid("dpo", 0.01, 0.03, 0.1),
    "rebel": paper.grid("rebel", 1e-4, 1e-2, 1.0),
    "simpo": paper.grid("simpo", 2.0, 2.5, 10.0),
}


def get_config() -> ConfigDict:
    config = paper.get_config(paper.LLAMA, "parquet:data/leetcode_llama/*.parquet")
    config.prompts.layout = "qrpo_offpolicy"
    config.select.units = "offpolicy10random"
    config.select.reference_count = 20
    config.select.exclude_own = False
    config.sft.epochs = 3  # on the data set's own solutions, see above
    config.train.beta = 1e-2
    config.train.checkpoint_every = 40
    config.reward.name, config.reward.path, config.reward.max_tokens = "tests", "", 0
    config.reward.cpu_seconds, config.reward.memory_mb = 1.0, 1024
    config.evaluate.temperature = 0.6
    return config

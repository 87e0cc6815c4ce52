"""The QRPO paper's main experiment (arXiv 2507.08068): Llama-3.1-Tulu-3-8B-SFT on Magpie-Air with ArmoRM's rewards.

Data: one of the authors' data sets with 50 reference rewards a prompt, from the collection
huggingface.co/collections/skandermoalla/qrpo-reference-datasets: the offline one for Magpie-Air, ArmoRM and this
policy without SFT. 97,812 pairs to train on, 1,992 held out, of at most 2,048 tokens a conversation. Name it on the
command line, `--config.prompts.source=hf:ORG/NAME`, or put its Parquet files where the default looks for them:

    qrpo-jax --config=paper_magpie_llama --workdir=runs/reference --config.stages=reference
    qrpo-jax --config=paper_magpie_llama --workdir=runs/magpie --fork=runs/reference
    python -m configs.paper paper_magpie_llama qrpo | \
      xargs -L1 qrpo-jax --config=paper_magpie_llama --fork=runs/reference

The second line is one point of the grid, the third all 18 of it; GRIDS has those of the baselines, of the number of
references and of the transforms. Which point of its grid each published figure comes from is not known here. To
sample and score the references anew: `--config.stages=sample,score,reference,train,evaluate,report,export`.

The published grid also has SFT before it (--config.stages=sft,reference,train,evaluate,report,export, with the data
set of that policy), and off-policy sets: --config.prompts.layout=qrpo_offpolicy --config.select.units=offpolicy2best,
or offpolicy2random.

Hardware: the authors trained on 2 nodes of 4 GH200, within a limit of 3 hours a run. For 8 v5p chips:

    qrpo-jax --config=paper_magpie_llama --workdir=runs/compile --config.stages=compile \
      --config.model.path=configs/shapes/tulu3_8b

Compiled for 8 v5p chips, a step of 65,536 tokens takes 1.3 s and 44 of 102 GB a chip, and log π_ref of as many 0.37 s
(predicted by stage compile with jax 0.10.2 on 2026-11-27, never run): 2.3 hours at most for an epoch.

Tokens: 765 steps of 128 pairs, at most 0.40 G tokens in all; how many fewer it is the first lines of stage train say.

Expected (table 3; AlpacaEval 2 is length-controlled / plain win rate in %, with the annotator
alpaca_eval_gpt4_turbo_fn; reward is ArmoRM's on held-out prompts, length-controlled / as it is):

    initial 18.1 / 10.8, 0.1518 / 0.1519    SFT on chosen 23.0 / 20.6, 0.1648 / 0.1649
    DPO     47.7 / 53.7, 0.1904 / 0.1943    SimPO         49.2 / 49.6, 0.1975 / 0.1976
    REBEL   46.3 / 45.5, 0.1889 / 0.1937    QRPO          50.6 / 56.5, 0.2005 / 0.1972

Stage evaluate gives the mean reward as it is, on all held-out prompts; the authors chose checkpoints and settings on
one half of these and report the other. AlpacaEval is not part of this package: it reads the exported model. Figure 3:
offline, the reward does not depend on the number of references; off-policy at beta 0.1 it rises from 0.1664 with 1 to
0.1700 with 50. Figure 4: Spearman correlation of implicit reward and length: DPO 0.49, SimPO 0.37, REBEL -0.14, QRPO
-0.16. None of these has been repeated with this package.
"""

from ml_collections import ConfigDict

from configs import paper

GRIDS: dict[str, paper.Grid] = {
    "qrpo": paper.grid("qrpo", 3e-4, 1e-3, 3e-3, select__reference_count=(1, 3)),
    "dpo": paper.grid("dpo", 0.01, 0.03, 0.1),
    "rebel": paper.grid("rebel", 1e-6, 1e-4, 1e-2),
    "simpo": paper.grid("simpo", 2.0, 2.5, 10.0),
    "references": paper.grid("qrpo", 3e-3, 1e-2, 0.1, select__reference_count=(1, 3, 10, 25, 50)),
    "transforms": paper.grid("qrpo", 0.03, 0.1, 0.3, train__transform=("normal-icdf", "scaled-normal-icdf")),
}


def get_config() -> ConfigDict:
    config = paper.get_config(paper.LLAMA, "parquet:data/magpie_llama/*.parquet")
    config.select.reference_count = 3
    config.train.beta = 1e-3
    config.train.checkpoint_every = 160
    config.evaluate.temperature = 0.6
    return config

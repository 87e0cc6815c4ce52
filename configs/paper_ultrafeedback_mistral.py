"""The QRPO paper's Mistral 7B Instruct v0.2 on UltraFeedback with ArmoRM's rewards (arXiv 2507.08068).

Data: one of the authors' data sets with 50 reference rewards a prompt, from the collection
huggingface.co/collections/skandermoalla/qrpo-reference-datasets: the offline one for UltraFeedback, ArmoRM and this
policy without SFT. 61,024 pairs to train on, 1,995 held out. Name it on the command line,
`--config.prompts.source=hf:ORG/NAME`, or put its Parquet files where the default looks for them:

    qrpo-jax --config=paper_ultrafeedback_mistral --workdir=runs/reference --config.stages=reference
    qrpo-jax --config=paper_ultrafeedback_mistral --workdir=runs/ultrafeedback --fork=runs/reference
    python -m configs.paper paper_ultrafeedback_mistral qrpo | \
      xargs -L1 qrpo-jax --config=paper_ultrafeedback_mistral --fork=runs/reference

The second line is one point of the grid, the third all 9 of it; GRIDS has those of the baselines. Which point of its
grid each published figure comes from is not known here. To annotate the original pairs, whose grades are GPT-4's:

    qrpo-jax --config=paper_ultrafeedback_mistral --workdir=runs/annotated --config.stages=score \
      --config.prompts.source=hf:HuggingFaceH4/ultrafeedback_binarized --config.reward.replace=True

The published grid also has SFT before it (--config.stages=sft,reference,train,evaluate,report,export, with the data
set of that policy), and off-policy sets: --config.prompts.layout=qrpo_offpolicy --config.select.units=offpolicy2best,
or offpolicy2random.

Hardware: the authors trained on 2 nodes of 4 GH200, within a limit of 3 hours a run. For 8 v5p chips:

    qrpo-jax --config=paper_ultrafeedback_mistral --workdir=runs/compile --config.stages=compile \
      --config.model.path=configs/shapes/mistral_7b

Compiled for 8 v5p chips, a step of 65,536 tokens takes 1.3 s and 43 of 102 GB a chip, and log π_ref of as many 0.35 s
(predicted by stage compile with jax 0.10.2 on 2026-11-27, never run): 1.4 hours at most for an epoch.

Tokens: 477 steps of 128 pairs, at most 0.25 G tokens in all; how many fewer it is the first lines of stage train say.

Expected (table 3; AlpacaEval 2 is length-controlled / plain win rate in %, with the annotator
alpaca_eval_gpt4_turbo_fn; reward is ArmoRM's on held-out prompts, length-controlled / as it is):

    initial 27.2 / 21.4, 0.1348 / 0.1349    SFT on chosen 13.4 / 10.2, 0.1254 / 0.1258
    DPO     38.8 / 39.0, 0.1465 / 0.1480    SimPO         38.8 / 34.8, 0.1478 / 0.1472
    REBEL   31.5 / 35.5, 0.1466 / 0.1457    QRPO          38.8 / 36.7, 0.1470 / 0.1469

Stage evaluate gives the mean reward as it is, on all held-out prompts; the authors report half of these. AlpacaEval
is not part of this package. None of these figures has been repeated with this package.
"""

from ml_collections import ConfigDict

from configs import paper

GRIDS: dict[str, paper.Grid] = {
    "qrpo": paper.grid("qrpo", 3e-4, 1e-3, 3e-3),
    "dpo": paper.grid("dpo", 0.01, 0.03, 0.1),
    "rebel": paper.grid("rebel", 1e-6, 1e-4, 1e-2),
    "simpo": paper.grid("simpo", 2.0, 2.5, 10.0),
}


def get_config() -> ConfigDict:
    config = paper.get_config(paper.MISTRAL, "parquet:data/ultrafeedback_mistral/*.parquet")
    config.prompts.split, config.prompts.held_out = "train_prefs", "test_prefs"
    config.select.reference_count = 3
    config.train.beta = 1e-3
    config.train.checkpoint_every = 100
    config.evaluate.temperature = 0.7
    return config

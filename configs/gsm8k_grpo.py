"""GRPO on GSM8K: school mathematics, rewarded by the final answer; Llama-3.1-Tulu-3-8B-SFT on 32 v5p chips.

    python -m qrpo_jax.main --config=configs/gsm8k_grpo.py --workdir=runs/gsm8k_grpo \
      --config.model.path=allenai/Llama-3.1-Tulu-3-8B-SFT

The 7,473 training problems come from the hub (`pip install -e ".[hf]"`), and from its test split the 1,319 that stage
`evaluate` compares policy and start on. From files: `--config.prompts.source=jsonl:gsm8k.jsonl --config.prompts.split=
--config.prompts.held_out=0.2`. Answers are compared on CPUs; no reward model and no code runs.

Each of 174 iterations (3 rounds) samples 16 completions of 128 prompts and makes 4 steps of 512 completions. The
variant is GRPO (arXiv 2402.03300: rewards minus the mean of their group, over its standard deviation, KL to the start
by k3 in the loss, here 0.001) with three parts of DAPO (arXiv 2503.14476): clip-higher 0.28, all tokens of a batch
weigh the same, and dynamic sampling, which replaces groups that are all right or all wrong up to 2 times. Completions
that the length limit cut have no part in the loss. Another objective is one key: `--config.train.objective=rloo`, or
qrpo with `--config.rollout.quantiles=group`.

Compiled for v5p:2x4x4 (`--config.stages=compile`, libtpu 0.0.52 on two cores of an Intel Xeon, 2026-11-28), with all
completions as long as they may be and no group replaced: an iteration takes 32.5 s, of which sampling 15.9 (131,820
tokens a second; a copy of the weights on each chip, which arrives in 0.05 s), log-probs of policy and start 5.9, and
steps 10.7 at 66 % of the peak. It needs 31.5 of 102 GB a chip. Sampling is the bottleneck: reading weights and caches
would take 7.2 s at the published bandwidth.

Expected: not known. No run of this record on a pretrained model has been measured. Tested: the whole road on a model of
260,000 parameters that only tells stories (`tests/on_policy/test_gsm8k.py`), whose rewards are all 0.
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("tulu3_8b", topology="v5p:2x4x4")
    config.stages = ("train", "evaluate", "report", "export")

    config.prompts.source = "hf:openai/gsm8k:main"
    config.prompts.layout = "gsm8k"
    config.prompts.split, config.prompts.held_out = "train", "test"
    config.prompts.max_tokens = 512
    config.reward.name = "answer"

    config.rollout.iterations = 174
    config.rollout.prompts = 128
    config.rollout.completions = 16
    config.rollout.max_new_tokens = 1024
    config.rollout.refill = 2
    config.pack.max_tokens = 1536

    config.train.data = "on_policy"
    config.train.objective = "grpo"
    config.train.beta = 0.001
    config.train.clip_low, config.train.clip_high = 0.2, 0.28
    config.train.token_average = "token"
    config.train.advantage_scale = "std"
    config.train.mask_cut = True
    config.train.batch_size = 512
    config.train.learning_rate = 1e-6
    config.train.schedule, config.train.warmup_share = "constant", 0.02

    config.watch.every = 20
    config.watch.prompts = 64
    config.watch.max_new_tokens = 1024
    config.evaluate.completions = 4
    config.evaluate.max_new_tokens = 1024

    config.compile.rows = 64
    return config

"""QRPO on LeetCodeDataset: methods of `class Solution`, scored by the share of their tests that pass.

    qrpo-jax --config=leetcode --workdir=runs/leetcode --config.model.path=MODEL

MODEL is a folder or an id of the hub whose chat template answers with a block of code. The data come from the hub
(`pip install -e ".[hf]"`), with the data set's own splits: problems by date, the latest 228 in `test`. From files:

    qrpo-jax --config=leetcode --workdir=runs/leetcode --config.model.path=MODEL --config.prompts.held_out=test \
      --config.prompts.source='jsonl:LeetCodeDataset-v0.3.1-*.jsonl.gz'

The policy samples 8 completions of each problem, which are ranked among each other and trained on. So is the published
solution, as one more completion. Code runs in the sandbox with the limits of the QRPO paper, 1 s and 1 GB each test;
`--config.stages=sandbox` says what this machine holds, and a run refuses less than level `kernel`. Some published
solutions import sortedcontainers or numpy: `--config.reward.python=ENV/bin/python` names an environment that has them.

Hardware: as for configs/mbpp.py, with rows twice as long.

Expected: not known. No run of this record has been measured. configs/paper_leetcode_llama.py has the published results
of an 8B model on its authors' own samples of these problems. Tested: the whole road on a model of 260,000 parameters
that only tells stories (`tests/job/test_code_sets.py`), whose rewards are all 0, and stage `score` on published
solutions, whose rewards are 1.
"""

from ml_collections import ConfigDict

from configs import mbpp


def get_config() -> ConfigDict:
    config = mbpp.get_config()
    config.prompts.source = "hf:newfacade/LeetCodeDataset"
    config.prompts.max_tokens = 2048
    config.sample.max_new_tokens = 1024
    config.evaluate.max_new_tokens = 1024
    config.pack.max_tokens = 3072
    config.train.beta = 1e-2  # the middle of the paper's grid
    return config

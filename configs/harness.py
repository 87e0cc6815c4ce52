"""Published benchmarks on one model folder: HumanEval, MBPP and GSM8K, greedy, with 95 % intervals.

    qrpo-jax --config=harness --workdir=runs/bench --config.model.path=MODEL

MODEL is a folder, such as `runs/mine/export/model`, or an id of the hub. `--config.evaluate.against=OTHER` puts another
model beside it. The data come from the hub (`pip install -e ".[hf]"`), or from files (docs/harnesses.md). Model-written
code runs in the sandbox: `--config.stages=sandbox` says what this machine holds.

Expected: that of the model's own authors, within the interval, where they asked with the same words. No run on a
pretrained chat model has been measured. Tested: published solutions have pass@1 = 1 through this road, and scores of
lm_eval's requests are those of its own backend on torch (`tests/harnesses`).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("harness",)
    config.model.compute_dtype = "bfloat16"
    config.harness.tasks = ("humaneval", "mbpp", "gsm8k")
    return config

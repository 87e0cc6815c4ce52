"""QRPO on MBPP: short Python functions, scored by the share of their published tests that pass.

    qrpo-jax --config=mbpp --workdir=runs/mbpp --config.model.path=MODEL

MODEL is a folder or an id of the hub whose chat template answers with a block of code; `--config.model.template=plain`
is for a model without one. The data come from the hub (`pip install -e ".[hf]"`): 374 problems to train on, and of the
500 of split `test` all to evaluate on. A prompt is the problem's text and its tests, as the authors evaluate
(arXiv 2108.07732). From files, in the authors' form or in that of mxeval, whose prompts are function heads:

    qrpo-jax --config=mbpp --workdir=runs/mbpp --config.model.path=MODEL --config.prompts.source=jsonl:mbpp.jsonl \
      --config.prompts.split= --config.prompts.held_out=0.5

The policy samples 8 completions of each problem, which are ranked among each other and trained on. So is the published
solution, as one more completion. Code runs in the sandbox: `--config.stages=sandbox` says what this machine holds, and
a run refuses less than level `kernel`.

Hardware: a 1B model in bfloat16 with AdamW needs about 12 GB for weights and moments, and activations on top;
`--config.lora.rank=16` needs less.

Expected: not known. No run of this record on a pretrained code model has been measured. Tested: the whole road on a
model of 260,000 parameters that only tells stories (`tests/job/test_code_sets.py`), whose rewards are all 0, and stage
`score` on published solutions, whose rewards are 1.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("sample", "score", "reference", "train", "evaluate", "report", "export")
    config.model.compute_dtype = "bfloat16"

    config.prompts.source = "hf:google-research-datasets/mbpp:full"
    config.prompts.split, config.prompts.held_out = "train", "test"
    config.prompts.count = 0
    config.prompts.max_tokens = 1024

    config.sample.completions = 8
    config.sample.max_new_tokens = 512
    config.evaluate.completions = 8
    config.evaluate.max_new_tokens = 512
    config.pack.max_tokens = 1536

    config.reward.name = "tests"
    config.reward.cpu_seconds, config.reward.memory_mb = 1.0, 1024

    # Many completions of a prompt pass the same tests: a tie counts as half.
    config.select.ties = "mid"
    config.train.beta = 0.1
    config.train.learning_rate = 1e-6
    config.train.batch_size = 64
    return config

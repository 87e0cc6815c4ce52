"""What the configs of published models at scale share: bfloat16 products, sharded parameters, long packed rows.

Their models are folders with a config.json alone, the shape of the published model. That is enough for stage `compile`:

    python -m qrpo_jax.main --config=configs/tulu3_8b.py --workdir=DIR --config.stages=compile

To train, name the folder with weights and tokenizer, `--config.model.path=DIR`, and prompts,
`--config.prompts.source=jsonl:FILE`, on a slice of the config's topology.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import default

SHAPES = Path(__file__).parent / "shapes"


def get_config(shape: str, topology: str) -> ConfigDict:
    """Every key of a run.

    Args:
      shape: the folder of the model's config.json in configs/shapes.
      topology: the slice to compile for.
    """
    config = default.get_config()
    config.model.path = str(SHAPES / shape)
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "dots"

    # Parameters and rows are split over all chips. Weights are gathered layer by layer.
    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.prompts.source = "jsonl:prompts.jsonl"
    config.prompts.count = 0
    config.prompts.max_tokens = 1024
    config.prompts.unit = 256
    config.sample.completions = 8
    config.sample.max_new_tokens = 1024
    config.reward.name = "model"
    config.pack.max_tokens = 2048
    config.pack.row_tokens = 4096
    config.pack.slots = 32

    config.train.batch_size = 1024
    config.train.learning_rate = 3e-7
    config.train.beta = 0.1
    config.train.clip_norm = 1.0

    config.compile.topology = topology
    return config

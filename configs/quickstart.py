"""placeholder"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate", "report", "export")

    config.model.d_model = 128
    config.model.layers = 4
    config.model.heads = 4
    config.model.kv_heads = 4
    config.model.head_dim = 32
    config.model.d_ff = 512
    config.model.remat = True  # on a CPU, writing activations down costs more than computing them again

    config.prompts.count = 2048
    config.prompts.held_out = 384
    config.prompts.max_tokens = 48

    config.pack.max_tokens = 64
    config.pack.row_tokens = 64
    config.pack.slots = 4

    config.sft.examples = 12800
    config.sft.batch_size = 32
    config.sft.learning_rate = 3e-3
    config.sft.b2 = 0.99
    config.sft.clip_norm = 1.0

    config.sample.completions = 8
    config.sample.max_new_tokens = 24
    config.evaluate.completions = 8
    config.evaluate.max_new_tokens = 24
    config.reward.cpu_seconds = 0.25
    config.reward.memory_mb = 128

    config.select.ties = "mid"
    config.train.beta = 0.3
    config.train.learning_rate = 2e-4
    config.train.batch_size = 64
    config.train.b2 = 0.99
    config.train.clip_norm = 1.0
    return config

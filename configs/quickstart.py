"""placeholder"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate", "report", "export")
    config.pack.max_tokens = 64
    config.pack.row_tokens = 128
    config.pack.slots = 8
    config.prompts.max_tokens = 40
    config.sample.max_new_tokens = 24
    config.evaluate.max_new_tokens = 24
    config.sft.examples = 20000
    config.sft.batch_size = 128
    config.train.learning_rate = 3e-4
    config.train.batch_size = 256
    config.train.beta = 0.1
    config.select.ties = "mid"
    return config

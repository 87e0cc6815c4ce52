"""What the two PyTorch trainers have in common: a Hugging Face `Trainer` that makes a step when the driver asks for it.

Runs in the peer's interpreter: torch, transformers and the standard library only.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from turns import Turns  # this file runs as a script beside it

OPTIONS = {
    "output_dir": tempfile.gettempdir(),
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1e5,  # the norm is computed, as on the other side, and never clips
    "num_train_epochs": 1,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 10,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,  # faster without
    "remove_unused_columns": False,
    "dataset_num_proc": None,
}


def set_up() -> int:
    """Lets torch use the CPUs of this process; returns their number."""
    os.environ.update(WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Pairs of a JSON-lines file, in the order in which they are trained on."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def open_model(folder: str) -> tuple[Any, Any, Any]:
    """Policy, reference and tokenizer of a model folder, float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.unk_token
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32) for _ in range(2))
    return policy, reference, tokenizer


def serve(trainer: Any, turns: Turns, threads: int, versions: str, count_tokens: Any) -> None:
    """Trains, one step for each turn, on the pairs in their order.

    Args:
      count_tokens: tokens of a collated batch that are not padding.
    """
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    counts: list[int] = []
    training_step = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any) -> Any:
        counts.append(int(count_tokens(inputs)))
        return training_step(model, inputs, *rest)

    class OneByOne(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.ready(about=f"{versions}, {threads} threads")
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            # The next batch is collated after this call, so a step has everything that the trainer does between two.
            turns.done(counts.pop())
            turns.wait()

    trainer.training_step = counted
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    trainer.add_callback(OneByOne())
    trainer.train()

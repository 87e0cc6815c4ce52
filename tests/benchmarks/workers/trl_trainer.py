"""Worker of `peers`: the `DPOTrainer` of TRL 1.

PYTHON trl_trainer.py MODEL PAIRS.jsonl BATCH MAX_TOKENS in_step|stored
"""

import sys

import torch_trainer
from turns import Turns


def main(model: str, pairs: str, batch: str, max_tokens: str, reference_log_probs: str) -> None:
    turns, threads = Turns(), torch_trainer.set_up()
    import torch
    import transformers
    import trl
    from datasets import Dataset

    policy, reference, tokenizer = torch_trainer.open_model(model)
    stored = reference_log_probs == "stored"
    # The tokenizer's own beginning, and an end that the trainer adds, make the tokens those of the other sides.
    rows = [{part: pair[part] for part in ("prompt", "chosen", "rejected")} for pair in torch_trainer.read_pairs(pairs)]
    options = trl.DPOConfig(
        **torch_trainer.OPTIONS,
        per_device_train_batch_size=int(batch),
        beta=0.1,
        max_length=int(max_tokens),
        precompute_ref_log_probs=stored,
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    torch_trainer.serve(trainer, turns, threads, versions, lambda inputs: inputs["attention_mask"].sum())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Worker of `peers`: the published PyTorch QRPO trainer.

    PYTHON published_trainer.py CHECKOUT MODEL PAIRS.jsonl BATCH MAX_TOKENS in_step|stored

Needs a checkout of CLAIRE-Labo/quantile-reward-policy-optimization and its stack (trl 0.14, transformers 4.48).
"""

import sys

import torch_trainer
from turns import Turns


def main(checkout: str, model: str, pairs: str, batch: str, max_tokens: str, reference_log_probs: str) -> None:
    turns, threads = Turns(), torch_trainer.set_up()
    sys.path.insert(0, f"{checkout}/src")
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from qrpo.trainers.qrpo import QRPOTrainer
    from qrpo.trainers.qrpo_config import QRPOConfig

    policy, reference, tokenizer = torch_trainer.open_model(model)
    begin, end = tokenizer.bos_token or "", tokenizer.eos_token
    # This trainer adds no special tokens to plain text.
    rows = [
        {
            "prompt": begin + pair["prompt"],
            "chosen": pair["chosen"] + end,
            "rejected": pair["rejected"] + end,
            "chosen_rewards": pair["chosen_reward"],
            "rejected_rewards": pair["rejected_reward"],
            "ref_rewards": pair["reference_rewards"],
        }
        | {f"unmodified_{part}": "" for part in ("prompt", "chosen", "rejected")}
        for pair in torch_trainer.read_pairs(pairs)
    ]
    options = QRPOConfig(
        **torch_trainer.OPTIONS,
        per_device_train_batch_size=int(batch),
        beta=0.1,
        qrpo_transform_type="identity",
        max_length=int(max_tokens),
        max_prompt_length=int(max_tokens),
        max_completion_length=int(max_tokens),
        precompute_ref_log_probs=reference_log_probs == "stored",
    )
    trainer = QRPOTrainer(
        model=policy,
        ref_model=reference,
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    torch_trainer.serve(trainer, turns, threads, versions, count_tokens)


def count_tokens(inputs: dict) -> int:
    prompt, *completions = (inputs[f"{part}_attention_mask"].sum() for part in ("prompt", "chosen", "rejected"))
    return 2 * prompt + sum(completions)


if __name__ == "__main__":
    main(*sys.argv[1:])

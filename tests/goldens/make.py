"""Writes the goldens of tests/test_families.py with transformers: `python tests/goldens/make.py [CASE ...]`.

CASE.json holds config.json as transformers saves it, and the stored tensors' names and shapes; CASE.npz the logits
[L, V] of one sequence and, tensor by tensor in the order of their names, the gradient of a loss along one direction.
Weights, tokens and directions follow from names (tests/family_cases.py). Needs the `parity` extra.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import family_cases as cases  # noqa: E402


def model(case: str, sizes: cases.Sizes) -> Any:
    """The case's model in transformers, float32, with the weights that its tensors' names say."""
    import torch
    import transformers

    named = getattr(transformers, cases.CASES[case][0])
    made = named._from_config(named.config_class(**cases.config(case, sizes)), attn_implementation="eager")
    made = made.to(torch.float32).eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            drawn = cases.weight(case, name, tuple(tensor.shape))
            if not (name == "lm_head.weight" and made.config.tie_word_embeddings):
                tensor.copy_(torch.tensor(drawn))
    return made


def loss(made: Any, tokens_BxL: np.ndarray, weights_BxL: np.ndarray) -> Any:
    """Weighted sum of the tokens' log-probabilities; a token's weight stands at its own position."""
    import torch

    scored = torch.log_softmax(made(torch.tensor(tokens_BxL, dtype=torch.long)).logits, -1)[:, :-1]
    picked = scored.gather(-1, torch.tensor(tokens_BxL, dtype=torch.long)[:, 1:, None])[..., 0]
    return (picked * torch.tensor(weights_BxL[:, 1:])).sum()


def one_line_each(content: dict[str, dict[str, Any]]) -> str:
    """JSON with a line for every key of every part."""
    parts = []
    for part, entries in content.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(entries[key], sort_keys=True)}" for key in sorted(entries)]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(names: list[str]) -> None:
    import torch

    for case in names or cases.WITH_GOLDEN:
        made = model(case, cases.GOLDEN)
        tokens = cases.tokens(case, cases.GOLDEN.vocab)
        loss(made, tokens, cases.loss_weights(tokens.shape)).backward()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            made.save_pretrained(folder)
            saved = json.loads((Path(folder) / "config.json").read_text())
            logits = made(torch.tensor(tokens, dtype=torch.long)).logits[0].numpy()
        shapes = {name: list(tensor.shape) for name, tensor in made.state_dict().items()}
        if made.config.tie_word_embeddings:
            del shapes["lm_head.weight"]
        gradients = {
            name: np.sum(parameter.grad.numpy() * cases.direction(name, tuple(parameter.shape)))
            for name, parameter in made.named_parameters()
        }
        (HERE / f"{case}.json").write_text(one_line_each({"config": saved, "tensors": shapes}))
        along = np.asarray([gradients[name] for name in sorted(gradients)], np.float32)
        np.savez_compressed(HERE / f"{case}.npz", logits=logits, gradients=along)
        print(case, f"logits to {np.abs(logits).max():.2f}", f"gradients to {max(map(abs, gradients.values())):.2g}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Writes the goldens of tests/hugging_face/test_families.py with transformers:
`python tests/hugging_face/goldens/make.py [CASE ...]`.

CASE.json holds config.json as transformers saves it, and the stored tensors' names and shapes; CASE.npz the logits
[L, V] of one sequence and, tensor by tensor in the order of their names, the gradient of a loss along one direction.
Weights, tokens and directions follow from names (tests/helpers/family_cases.py). Needs the `parity` extra.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from tests.helpers import family_cases as cases  # noqa: E402
from tests.helpers.live_models import loss, model  # noqa: E402


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

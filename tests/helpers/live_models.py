"""Models of transformers on torch, of other sizes than the goldens."""

from typing import Any

import numpy as np
import pytest

from tests.helpers import family_cases as cases

SIZES = {
    "deep": cases.Sizes(vocab=41, d_model=50, d_ff=37, layers=5, heads=10, kv_heads=5, head_dim=14),
    "wide": cases.Sizes(vocab=43, d_model=66, d_ff=101, layers=2, heads=3, kv_heads=1, head_dim=22),
}


def logits_of(model: Any, tokens_BxL: np.ndarray, mask_BxL: np.ndarray | None = None) -> np.ndarray:
    torch = pytest.importorskip("torch")
    mask = None if mask_BxL is None else torch.tensor(mask_BxL)
    with torch.no_grad():
        return model(torch.tensor(tokens_BxL, dtype=torch.long), attention_mask=mask).logits.numpy()


def model(case: str, sizes: cases.Sizes) -> Any:
    """The case's model in transformers, float32, with the weights drawn from its tensors' names."""
    import torch
    import transformers

    named = getattr(transformers, cases.CASES[case][0])
    loaded = named._from_config(named.config_class(**cases.config(case, sizes)), attn_implementation="eager")
    loaded = loaded.to(torch.float32).eval()
    with torch.no_grad():
        for name, tensor in loaded.state_dict().items():
            drawn = cases.weight(case, name, tuple(tensor.shape))
            if not (name == "lm_head.weight" and loaded.config.tie_word_embeddings):
                tensor.copy_(torch.tensor(drawn))
    return loaded


def loss(model: Any, tokens_BxL: np.ndarray, weights_BxL: np.ndarray) -> Any:
    """Weighted sum of the tokens' log-probabilities; each weight is at its token's position."""
    import torch

    scored = torch.log_softmax(model(torch.tensor(tokens_BxL, dtype=torch.long)).logits, -1)[:, :-1]
    picked = scored.gather(-1, torch.tensor(tokens_BxL, dtype=torch.long)[:, 1:, None])[..., 0]
    return (picked * torch.tensor(weights_BxL[:, 1:])).sum()

"""Values and their gradients against torch: hidden states of live transformers times the head."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax.model import decoder, value_head
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.log_probs import log_probs_and_values
from tests.helpers import family_cases as cases
from tests.helpers import live_models, sequences
from tests.helpers.family_models import load, stored_form
from tests.helpers.value_heads import filled, with_head

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("case, size", [("llama3", "deep"), ("qwen3", "wide"), ("gemma2", "wide")])
def test_values_and_their_gradients_are_those_of_torch(case: str, size: str, tmp_path: Path) -> None:
    """In a loss with the tokens' log-probs, so that head and unembedding share their trunk."""
    torch = pytest.importorskip("torch")
    model = live_models.model(case, live_models.SIZES[size])
    model.save_pretrained(tmp_path)
    settings, policy = load(tmp_path)
    tokens, head = cases.tokens(case, settings.vocab_size, 2), filled(settings.d_model)
    weights = cases.loss_weights(tokens.shape)  # each at the place of its token

    kernel = torch.tensor(np.asarray(head["kernel"]), requires_grad=True)
    bias = torch.tensor(float(head["bias"]), requires_grad=True)
    hidden = model.model(torch.tensor(tokens, dtype=torch.long)).last_hidden_state
    theirs = (hidden @ kernel + bias)[:, :-1]  # before each token but the first
    squares = (torch.tensor(weights[:, 1:]) * theirs**2).sum()
    model.zero_grad()
    (squares + live_models.loss(model, tokens, weights)).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    graph = decoder.graph(settings)
    rows = (tokens, sequences.one_a_row(tokens.shape), sequences.targets(tokens, weights != 0))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(parameters: decoder.Parameters) -> Any:
        scored, values = log_probs_and_values(graph, parameters, *rows, vocab_chunk=17, compute=Compute(remat="full"))
        assert values is not None
        return ((scored + values**2)[:, :-1] * weights[:, 1:]).sum(), values

    found, values = gradient(with_head(policy, head))
    counted = weights[:, 1:] != 0
    expected_values = theirs.detach().numpy()[counted]
    assert counted.sum() > 20 and expected_values.std() > 0.5, expected_values
    np.testing.assert_allclose(np.asarray(values)[:, :-1][counted], expected_values, rtol=0, atol=2e-5)
    of_policy, of_head = value_head.split(found)
    assert of_head is not None and np.abs(of_head["kernel"]).max() > 1e-2
    np.testing.assert_allclose(of_head["kernel"], kernel.grad.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(of_head["bias"], bias.grad.numpy(), rtol=0, atol=1e-4)
    ours = stored_form(settings, of_policy)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-4, err_msg=name)

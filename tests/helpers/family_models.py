"""The models of `family_cases` in this package: loading, decoding token by token, and conversion to stored tensors."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tensors import stored_tensors
from qrpo_jax.model import decoder
from qrpo_jax.model.cache import Cache, start_cache
from qrpo_jax.model.compute import DEFAULT
from qrpo_jax.model.layout import one_sequence


def load(folder: Path) -> tuple[decoder.DecoderSettings, decoder.Parameters]:
    settings = model_folder.check_folder(folder)
    return settings, model_folder.load(folder, make_mesh(1, 1, 1, devices=jax.devices()[:1]))


def stored_form(settings: decoder.DecoderSettings, parameters: decoder.Parameters) -> dict[str, np.ndarray]:
    """The tensors of a model folder, from a tree with the structure of the parameters."""
    flat = nnx.traversals.flatten_mapping(parameters)

    def rows(part: Any) -> np.ndarray:
        return part.to_stored(np.asarray(flat[part.path] if part.layer is None else flat[part.path][part.layer]))

    return {
        stored.name: np.concatenate([rows(part) for part in stored.parts])
        for stored in stored_tensors(settings)
        if stored.parts
    }


def decoded(
    settings: decoder.DecoderSettings, parameters: decoder.Parameters, tokens_L: np.ndarray, prompt: int
) -> np.ndarray:
    """Logits [2, L - prompt, V] of two copies of a sequence; the tokens after the prompt pass through the cache.

    The batch also has two completions of a longer prompt.
    """
    graph, steps = decoder.graph(settings), len(tokens_L) - prompt

    @jax.jit
    def forced(parameters: decoder.Parameters) -> jax.Array:
        model = nnx.merge(graph, parameters)
        within = np.broadcast_to(np.arange(prompt + 2), (2, prompt + 2))
        lengths = jnp.asarray([prompt, prompt + 2])
        prompts = np.stack([tokens_L[: prompt + 2]] * 2)
        _, (k, v) = model(prompts, one_sequence(lengths, within), keep_keys=True)
        cache = start_cache(
            k, v, lengths, completions=2, max_new_tokens=steps, settings=settings, order=DEFAULT.cache_order
        )

        def step(cache: Cache, token: jax.Array) -> Any:
            hidden, cache = model.decode(jnp.full(4, token), cache)
            return cache, model.logits(hidden)

        return jax.lax.scan(step, cache, jnp.asarray(tokens_L[prompt:]))[1]

    return np.moveaxis(np.asarray(forced(parameters)), 1, 0)[:2]

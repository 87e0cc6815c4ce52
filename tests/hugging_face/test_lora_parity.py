"""Adapter folders in `peft`, on live transformers models: they load as a whole and give our logits."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.model import decoder
from qrpo_jax.model.lora import join, merge
from tests.helpers import family_cases as cases
from tests.helpers import live_models, sequences
from tests.helpers.family_models import load
from tests.helpers.live_models import SIZES, logits_of

pytestmark = pytest.mark.parity

# With biases, without gate, with fused modules, with norms after the projections, and some targets only; with rotations
# of neighbouring dimensions, with multipliers, and with parallel blocks.
TARGETS = {
    "llama_biases": ".*_proj",
    "qwen2": "q_proj|v_proj",
    "gemma2": "self_attn.*",
    "apertus": ".*_proj",
    "phi3": ".*_proj",
    "phi3_long": "qkv_proj|down_proj",
    "olmo2": "mlp.*|o_proj",
    "glm4": "[qo]_proj|gate_up_proj",
    "granite4": ".*_proj|.*_linear",
    "cohere2": "self_attn.*|up_proj",
}
RANK, ALPHA = 3, 7.5


@pytest.mark.parametrize("case", TARGETS)
def test_peft_loads_the_folder_and_gives_our_logits(case: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pytest.importorskip("torch")
    model: Any = live_models.model(case, SIZES["deep"])
    model.save_pretrained(tmp_path / "base")
    settings, base = load(tmp_path / "base")
    lora = make_lora(settings, rank=RANK, alpha=ALPHA, targets=TARGETS[case])
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_parameters(settings, lora)
    adapters = jax.tree.map(lambda s: jnp.asarray(0.15 * rng.normal(size=s.shape), jnp.float32), shapes)
    adapter_folder.save(tmp_path / "adapter", settings, lora, adapters, base=str(tmp_path / "base"))

    tokens = cases.tokens(case, settings.vocab_size, 2)[:, :25]
    rows = (tokens, sequences.one_a_row(tokens.shape))
    before = logits_of(model, tokens)

    def ours(graph: nnx.GraphDef, parameters: decoder.Parameters) -> np.ndarray:
        def run(parameters: decoder.Parameters) -> jax.Array:
            merged = nnx.merge(graph, parameters)
            return merged.logits(merged(*rows)[0])

        return np.asarray(jax.jit(run)(parameters))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|adapter keys).*")
        adapted = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    theirs = logits_of(adapted, tokens)
    assert np.abs(theirs - before).max() > 0.3, "the adapters make too little difference to compare"
    unmerged = ours(decoder.graph(settings, lora), join(base, adapters))
    np.testing.assert_allclose(unmerged, theirs, rtol=0, atol=2e-5)

    # What peft itself writes of the loaded adapters are the tensors that it read.
    adapted.save_pretrained(str(tmp_path / "again"))
    written, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert written.keys() == again.keys()
    assert all(np.array_equal(written[name], again[name]) for name in written)

    # Merged by us, the model is the one that peft merges.
    tokenizer = vocabulary_tokenizer([chr(65 + i) for i in range(20)])
    words = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    merged = merge(base, adapters, lora)
    model_folder.save(tmp_path / "merged", settings, merged, words)
    reopened, parameters = load(tmp_path / "merged")
    np.testing.assert_allclose(ours(decoder.graph(reopened), parameters), theirs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits_of(adapted.merge_and_unload(), tokens), theirs, rtol=0, atol=2e-5)

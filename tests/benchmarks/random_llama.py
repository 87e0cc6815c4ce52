"""A random Llama of a few million parameters in a Hugging Face folder, and random rows of full length for it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

MAX_TOKENS = 512
PROMPT_TOKENS = 128  # with the beginning-of-sequence token; completions fill the rest, with their end token
SPECIAL = ("<unk>", "<s>", "</s>")


class Shape(NamedTuple):
    """Sizes of a Llama with tied embeddings."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    d_ff: int


# 29.5 and 41.7 million parameters; the larger one has the sizes of llama2.c's stories42M.
SHAPES = {"30M": Shape(8192, 512, 8, 8, 1376), "42M": Shape(32000, 512, 8, 8, 1376)}


def write_random_llama(folder: Path, name: str, rows: int) -> tuple[str, str]:
    """Writes a model, its tokenizer and rows of two completions.

    All completions have the full length, so no side has any padding.

    Returns:
      The model's folder and the path of the rows.
    """
    shape, rng, model = SHAPES[name], np.random.default_rng(0), folder / f"llama-{name}"
    model.mkdir()
    save_file(random_weights(shape, rng), model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps(hugging_face_config(shape)))
    write_tokenizer(model, shape.vocab_size)
    path = folder / "random.jsonl"

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(len(SPECIAL), shape.vocab_size, count))

    with path.open("w") as lines:
        for _ in range(rows):
            completions = [" " + words(MAX_TOKENS - PROMPT_TOKENS - 1) for _ in range(2)]
            row = {"prompt": words(PROMPT_TOKENS - 1), "completions": completions, "rewards": rng.random(2).tolist()}
            lines.write(json.dumps(row) + "\n")
    return str(model), str(path)


def random_weights(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tensors under Hugging Face's names for a Llama."""
    vocab, d, layers, _, d_ff = shape
    matrices = {"model.embed_tokens.weight": (vocab, d)}
    norms = ["model.norm.weight"]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        matrices |= {f"{at}.self_attn.{x}_proj.weight": (d, d) for x in "qkvo"}
        matrices |= {f"{at}.mlp.{x}_proj.weight": (d_ff, d) for x in ("gate", "up")}
        matrices |= {f"{at}.mlp.down_proj.weight": (d, d_ff)}
        norms += [f"{at}.{x}_layernorm.weight" for x in ("input", "post_attention")]
    weights = {name: 0.02 * rng.standard_normal(size, np.float32) for name, size in matrices.items()}
    return weights | {name: np.ones(d, np.float32) for name in norms}


def hugging_face_config(shape: Shape) -> dict[str, object]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.d_model // shape.heads,
        "intermediate_size": shape.d_ff,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of one word a token, in files that old and new releases of transformers read."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[0]))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS})
    )

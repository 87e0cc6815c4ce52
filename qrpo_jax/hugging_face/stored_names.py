"""Names of stored tensors that families share, and how the parameters lie in them."""

from qrpo_jax.hugging_face.family import ParameterPath, Weight


def norms(**names: str) -> dict[ParameterPath, Weight]:
    """Norms of a layer, by our names and theirs."""
    return {("layers", ours, "scale"): Weight(f"model.layers.{{}}.{name}.weight") for ours, name in names.items()}


_AT, MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"
COMMON: dict[ParameterPath, Weight] = {
    ("embedding",): Weight("model.embed_tokens.weight", None),
    ("norm", "scale"): Weight("model.norm.weight"),
    ("head",): Weight("lm_head.weight", None),
    **{("layers", "attention", x): Weight(f"{_AT}.{x}_proj.weight", 1) for x in "qkv"},
    ("layers", "attention", "o"): Weight(f"{_AT}.o_proj.weight", 2),
    **{("layers", "attention", f"{x}_bias"): Weight(f"{_AT}.{x}_proj.bias") for x in "qkvo"},
    **{("layers", "attention", f"{x}_norm", "scale"): Weight(f"{_AT}.{x}_norm.weight") for x in "qk"},
    **{("layers", "mlp", x): Weight(f"{MLP}.{x}_proj.weight", 1) for x in ("gate", "up", "down")},
    **{("layers", "mlp", f"{x}_bias"): Weight(f"{MLP}.{x}_proj.bias") for x in ("gate", "up", "down")},
}
FUSED_GATE: dict[ParameterPath, Weight] = {
    ("layers", "mlp", x): Weight(f"{MLP}.gate_up_proj.weight", 1, ("gate", "up")) for x in ("gate", "up")
}
FUSED: dict[ParameterPath, Weight] = FUSED_GATE | {
    ("layers", "attention", x): Weight(f"{_AT}.qkv_proj.weight", 1, ("q", "k", "v")) for x in "qkv"
}
SHARED_MLP: dict[ParameterPath, Weight] = {
    **{
        ("layers", "mlp", x): Weight("model.layers.{}.shared_mlp.input_linear.weight", 1, ("gate", "up"))
        for x in ("gate", "up")
    },
    ("layers", "mlp", "down"): Weight("model.layers.{}.shared_mlp.output_linear.weight", 1),
}
XIELU_WEIGHTS: dict[ParameterPath, Weight] = {
    ("layers", "mlp", "activation", x): Weight(f"{MLP}.act_fn.{x}") for x in ("alpha_p", "alpha_n")
}
PRE = COMMON | norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
POST = norms(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
SANDWICH = COMMON | POST | norms(attention_norm="input_layernorm", mlp_norm="pre_feedforward_layernorm")

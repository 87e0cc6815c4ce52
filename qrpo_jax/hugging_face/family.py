"""What a model family is: its settings, the keys of its Hugging Face `config.json`, and how its weights are stored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ParameterPath = tuple[str, ...]


class Weight(NamedTuple):
    """How a parameter is stored.

    Attributes:
      name: of the stored tensor; {} is the layer.
      inputs: number of the parameter's axes that are summed over. A matrix is stored as [outputs, inputs], the
        transpose of the parameter, and a vector flat. None: stored with the parameter's own axes.
      fused: where one stored tensor holds several parameters, all of their names, from its first row to its last.
    """

    name: str
    inputs: int | None = 0
    fused: tuple[str, ...] = ()


class Option(NamedTuple):
    """A key of config.json that sets settings.

    Attributes:
      fields: the settings.
      kind: bool, int or float.
      default: the value where the key is absent.
      nullable: whether null is allowed.
      reciprocal: the setting is 1 divided by the value.
    """

    fields: tuple[str, ...]
    kind: type
    default: Any
    nullable: bool = False
    reciprocal: bool = False


class Family(NamedTuple):
    """One architecture.

    Attributes:
      weights: how each parameter is stored.
      supported: keys that change the computation and may only have these values, the first where absent.
      options: keys that set settings.
      fixed: settings that all models of the family share.
      sizes: keys of sizes that have another name than in other families.
      epsilon: key of the norms' epsilon.
      needed: keys of `supported` that transformers takes for something else where they are absent.
      kv_heads, head_dim: defaults of config.json; None for as many as heads, and for d_model / heads.
      derived_head_dim: transformers takes d_model / heads, whatever config.json says.
      tied: default of `tie_word_embeddings`.
      ropes: supported kinds of rotary embedding.
      rope_theta: default base.
      rope_default: assumed where config.json has neither `rope_parameters` nor `rope_scaling`.
      windows: which layers slide: "none", "all", "listed" (all where layer_types is absent), "late" (from
        max_window_layers on), "unroped", or all but every `pattern`-th ("alternate"). "attention": none, and
        layer_types must say of each layer that it is attention.
      window: default size.
      pattern_keys: keys that older files say `pattern` by.
      local_theta: default base of sliding layers, where they have their own.
      local_key: the key that older files say it by; None where they had the base of the other layers.
      roped: which layers know positions: "all", "listed" (by `no_rope_layers`), "sliding", or "windowed" (the sliding
        ones where there is a window, and else all).
      query_growth: `rope_parameters` say how queries grow with their position.
      partial_rotary: heads may be rotated in part.
      rotary_share: default share of each head that is rotated.
      even_split: transformers refuses a d_model that is no multiple of heads.
      metadata: keys that change nothing in this family.
      written: keys that change nothing either, but which transformers checks and so an export has.
      constants: stored tensors that are not parameters, and their value.
      pad_token: default of `pad_token_id`.
    """

    model_type: str
    weights: Mapping[ParameterPath, Weight]
    supported: Mapping[str, tuple[Any, ...]]
    options: Mapping[str, Option] = {}
    fixed: Mapping[str, Any] = {}
    sizes: Mapping[str, str] = {}
    epsilon: str = "rms_norm_eps"
    needed: frozenset[str] = frozenset()
    kv_heads: int | None = None
    head_dim: int | None = None
    derived_head_dim: bool = False
    tied: bool = False
    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    rope_theta: float = 10_000.0
    rope_default: Mapping[str, Any] = {}
    windows: str = "none"
    window: int | None = None
    pattern: int = 0
    pattern_keys: tuple[str, ...] = ()
    local_theta: float | None = None
    local_key: str | None = None
    roped: str = "all"
    query_growth: bool = False
    partial_rotary: bool = False
    rotary_share: float = 1.0
    even_split: bool = False
    metadata: frozenset[str] = frozenset()
    written: Mapping[str, Any] = {}
    constants: Mapping[str, float] = {}
    pad_token: int | None = None

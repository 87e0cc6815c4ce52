"""A job: one config in one work directory, on the devices of this process or of all processes together."""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict
from tqdm import tqdm

from qrpo_jax.data import programs
from qrpo_jax.data.text import Text, make_text, open_text, vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh, parameter_shardings
from qrpo_jax.hugging_face import model_folder, weights
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.model import decoder, lora
from qrpo_jax.model.decoder import DecoderSettings, Parameters
from qrpo_jax.model.settings import Lora
from qrpo_jax.training import checkpoints
from qrpo_jax.training.state import parameter_layout
from qrpo_jax.training.step import Precision

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Policy(NamedTuple):
    """The model a job aligns: its shape and its tokenizer, without parameters.

    graph: of the base, which is the reference policy; of everything, where LoRA is not used.
    lora: what stage `train` adapts; None where it trains all parameters.
    trained_graph: of what stage `train` makes: with adapters, or `graph`.
    """

    settings: DecoderSettings
    graph: nnx.GraphDef
    text: Text
    lora: Lora | None
    trained_graph: nnx.GraphDef


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of work that splits into units: unit u is its own if u mod count = index."""

    index: int
    count: int

    def owns(self, unit: int) -> bool:
        return unit % self.count == self.index


class Job:
    """What every stage needs. Reading it changes nothing; `policy` and meshes are made when first asked for."""

    def __init__(self, config: FrozenConfigDict, workdir: Path, shard: Shard) -> None:
        self.config, self.workdir, self.shard = config, workdir, shard
        self._said: set[str] = set()

    def folder(self, stage: str) -> Path:
        return self.workdir / stage

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices of all processes: where training runs."""
        return make_mesh(**self.config.mesh)

    @functools.cached_property
    def local_mesh(self) -> Mesh:
        """The devices of this process, where its own units are worked on independently of other processes."""
        if jax.process_count() == 1:
            return self.mesh
        return make_mesh(-1, 1, 1, jax.local_devices())

    @functools.cached_property
    def policy(self) -> Policy:
        model = self.config.model
        if model.path:
            folder = Path(model.path)
            settings = model_folder.check_folder(folder)
            text = open_text(folder, model.template)
            model_folder.check_vocabulary(settings, text)
        else:
            tokenizer = vocabulary_tokenizer(programs.vocabulary())
            shape = ("d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions")
            settings = DecoderSettings(vocab_size=len(tokenizer), **{name: model[name] for name in shape})
            text = make_text(tokenizer, model.template, (tokenizer.eos_token_id,))
        graph, wanted = decoder.graph(settings), self.config.lora
        if wanted.rank == 0:
            return Policy(settings, graph, text, None, graph)
        adapted = make_lora(settings, rank=wanted.rank, alpha=wanted.alpha, targets=wanted.targets)
        return Policy(settings, graph, text, adapted, decoder.graph(settings, adapted))

    @property
    def dtype(self) -> Any:
        return DTYPES[self.config.model.compute_dtype]

    def precision(self) -> Precision:
        model = self.config.model
        return Precision(self.config.reference.temperature, model.vocab_chunk, self.dtype, model.remat)

    def fresh_parameters(self, mesh: Mesh) -> Parameters:
        """Parameters of a model that no stage has trained yet: imported, or random."""
        model = self.config.model
        if model.path:
            folder, dtype = Path(model.path), DTYPES[model.parameter_dtype]
            self.say_once(f"model: {weights.conversions(weights.read_headers(folder), dtype)} ({folder})")
            return model_folder.load(folder, mesh, dtype)
        return self._draw(mesh, jax.random.key(self.config.seed), DTYPES[model.parameter_dtype])

    def fresh_adapters(self, mesh: Mesh) -> Parameters:
        """LoRA's adapters before their first update; float32, whatever the type of the base."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        return self._draw(mesh, key, jnp.float32, self.policy.lora)

    def _draw(self, mesh: Mesh, key: jax.Array, dtype: Any, adapted: Lora | None = None) -> Parameters:
        settings = self.policy.settings

        def make(key: jax.Array) -> Parameters:
            return jax.tree.map(lambda x: x.astype(dtype), decoder.initial_parameters(settings, key, adapted))

        return jax.jit(make, out_shardings=self._shardings(mesh, adapted))(key)

    def _shardings(self, mesh: Mesh, adapted: Lora | None) -> Any:
        settings = self.policy.settings
        shapes = decoder.abstract_parameters(settings, adapted)
        return parameter_shardings(mesh, decoder.logical_axes(settings, adapted), shapes)

    def trained_parameters(self, stage: str, mesh: Mesh) -> Parameters:
        """Parameters that a finished stage left behind; of `train` with LoRA the adapters alone."""
        adapted = self.policy.lora if stage == "train" else None
        dtype = DTYPES[self.config.model.parameter_dtype] if adapted is None else jnp.float32
        layout = parameter_layout(mesh, self.policy.settings, dtype, adapted)
        return checkpoints.load_parameters(self.folder(stage) / "parameters", layout)

    def reference_parameters(self, mesh: Mesh) -> Parameters:
        """Parameters of the reference policy: what SFT left, or the imported model."""
        return self.trained_parameters("sft", mesh) if "sft" in self.config.stages else self.fresh_parameters(mesh)

    def policy_parameters(self, mesh: Mesh, reference: Parameters) -> Parameters:
        """Parameters of `trained_graph` after stage `train`; with LoRA their base is `reference` itself, not a copy."""
        trained = self.trained_parameters("train", mesh)
        return trained if self.policy.lora is None else lora.join(reference, trained)

    def graph(self, source: str) -> nnx.GraphDef:
        """The graph of the "reference" or of the trained "policy"."""
        return self.policy.trained_graph if source == "policy" else self.policy.graph

    def say(self, line: str) -> None:
        """Prints a line once, whatever the number of processes, above any progress bar."""
        if jax.process_index() == 0:
            tqdm.write(line, file=sys.stderr)

    def say_once(self, line: str) -> None:
        """Says what several stages have to say, the first time only."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)


def before(stages: tuple[str, ...], stage: str, among: tuple[str, ...]) -> str | None:
    """The last of `among` that runs before `stage`."""
    earlier = [name for name in stages[: stages.index(stage)] if name in among]
    return earlier[-1] if earlier else None

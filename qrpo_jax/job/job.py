"""A job: one config in one work directory, on the devices of this process or of all processes together."""

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

from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import AXES, make_mesh, parameter_shardings, platform_of
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import DamagedError, UserError, located
from qrpo_jax.hugging_face import model_folder, weights
from qrpo_jax.hugging_face.config import read_settings
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.hugging_face.tokenizer import open_text
from qrpo_jax.job import model_folders, unit_mesh
from qrpo_jax.job.manifest import MANIFEST
from qrpo_jax.job.model_folders import ModelFolder
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.stage import Stages, needs_weights
from qrpo_jax.job.unit_mesh import Model, UnitMesh
from qrpo_jax.model import attention, decoder, lora
from qrpo_jax.model.compute import UNROLL, Compute, check_remat
from qrpo_jax.model.decoder import DecoderSettings, Parameters
from qrpo_jax.model.settings import Lora
from qrpo_jax.rewards.models import RewardModel, open_reward_model
from qrpo_jax.rewards.parts import SUM, reward_names
from qrpo_jax.training.saved_parameters import kept_folder, load_parameters
from qrpo_jax.training.state import forward_layout, parameter_layout, stored_for_forward
from qrpo_jax.training.step import LogProbSettings


class Shape(NamedTuple):
    """The model that a job aligns, without parameters and tokenizer.

    Attributes:
      settings: of the decoder.
      graph: of the reference policy, which with LoRA is the base of the adapters.
      lora: the adapters of stage `train`; None if it trains all parameters.
      trained_graph: of the policy after stage `train`: `graph` with adapters, or `graph` itself.
    """

    settings: DecoderSettings
    graph: nnx.GraphDef
    lora: Lora | None
    trained_graph: nnx.GraphDef


class Job:
    """A config in a work directory, with the model and the devices that its stages share.

    Creating it opens and writes nothing: model and meshes are opened on first use.

    Args:
      config: every key of `configs/default.py`.
      workdir: has one folder for each stage.
      shard: this process's share of the stages that split into units.
      stages: the stages that `config.stages` may name, normally `stages.STAGES`.
      fork: work directory of the run that this one is forked from, if any.
    """

    def __init__(
        self, config: FrozenConfigDict, workdir: Path, shard: Shard, stages: Stages, fork: Path | None = None
    ) -> None:
        self.config, self.workdir, self.shard, self.stages = config, workdir, shard, stages
        self.runs: tuple[Path, ...] = (workdir,) if fork is None else (workdir, fork)
        self._printed: set[str] = set()
        self.notes: list[str] = []

    def folder(self, stage: str) -> Path:
        return self.workdir / stage

    def rows_before(self, stage: str) -> str:
        """The stage whose rows `stage` reads: the last one before it that writes rows.

        Raises:
          UserError: there is none.
        """
        names = self.config.stages
        writers = [name for name in names[: names.index(stage)] if self.stages[name].writes_rows]
        if not writers:
            raise UserError(f"stage {stage!r} reads rows, and no stage before it writes any; change config.stages")
        return writers[-1]

    @functools.cached_property
    def model_folder(self) -> ModelFolder:
        """The folder of `config.model.path`, with weights if a stage loads them."""
        return self._model_folder("model", weights=needs_weights(self.config, self.stages))

    @functools.cached_property
    def reward_folder(self) -> ModelFolder:
        """The folder of `config.reward.path`."""
        return self._model_folder("reward", weights=True)

    def _model_folder(self, section: str, *, weights: bool) -> ModelFolder:
        with located(f"{section}.path"):
            found = model_folders.find(section, self.config[section].path, self.runs, weights=weights)
        if found.note:
            self.note(found.note)
        return found

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices of all processes: where training runs."""
        with located("mesh"):
            return make_mesh(**{axis: self.config.mesh[axis] for axis in AXES})

    @functools.cached_property
    def unit_mesh(self) -> Mesh:
        """The devices that compute a unit of work: this process's own, or those of all processes together."""
        chosen = self.unit_mesh_of(self.mesh)
        if chosen.reason:
            self.say_once(chosen.reason)
        return chosen.mesh

    def unit_mesh_of(self, whole: Mesh) -> UnitMesh:
        """The devices of a mesh that compute a unit of work."""
        with located("mesh", units="mesh.units"):
            return unit_mesh.choose(self._unit_models(), whole, self.config.mesh.units)

    def _unit_models(self) -> list[Model]:
        """The models that stages with units of work hold at the same time."""
        config, stages = self.config, self.config.stages
        policy = Model(self.shape.settings, FLOATS[config.model.parameter_dtype], "the policy")
        # Evaluation holds the reference too; with LoRA that is the base of the policy.
        both = "evaluate" in stages and self.shape.lora is None
        models = [policy, policy._replace(name="the reference")] if both else [policy]
        if "model" in self.rewards and {"score", "evaluate"} & set(stages):
            models.append(Model(self.reward_model.settings, FLOATS[config.model.compute_dtype], "the reward model"))
        return models

    @property
    def together(self) -> bool:
        """Whether all processes compute each unit of work together."""
        return jax.process_count() > 1 and self.unit_mesh is self.mesh

    @functools.cached_property
    def shape(self) -> Shape:
        """The model as its config.json describes it; the folder need not have weights or a tokenizer."""
        model = self.config.model
        if model.path:
            with located("model.path"):
                settings = read_settings(self.model_folder.folder)
        else:
            sizes = ("d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions")
            with located("model"):
                size = len(self.text.tokenizer)
                settings = DecoderSettings(vocab_size=size, **{name: model[name] for name in sizes})
        graph, adapters = decoder.graph(settings), self.config.lora
        if adapters.rank == 0:
            return Shape(settings, graph, None, graph)
        with located("lora", rank="lora.rank", alpha="lora.alpha", targets="lora.targets"):
            adapted = make_lora(settings, rank=adapters.rank, alpha=adapters.alpha, targets=adapters.targets)
        return Shape(settings, graph, adapted, decoder.graph(settings, adapted))

    @functools.cached_property
    def text(self) -> Text:
        """The model's tokenizer and chat template. That of a new model has the words of the prompts."""
        model = self.config.model
        with located("model.path" if model.path else "model", template="model.template", thinking="model.thinking"):
            if model.path:
                text = open_text(self.model_folder.folder, model.template, model.thinking)
                for note in text.notes:
                    self.say_once(f"model: the chat template {note}")
                return text
            vocabulary = kind_of(self.config.prompts.source).vocabulary
            assert vocabulary is not None, "check_source refuses a source without a vocabulary"
            tokenizer = vocabulary_tokenizer(vocabulary())
            return make_text(tokenizer, model.template, (tokenizer.eos_token_id,), model.thinking)

    @functools.cached_property
    def rewards(self) -> list[str]:
        """The name of the reward, or those of its parts."""
        with located("reward.parts"):
            return reward_names(self.config.reward.name, self.config.reward.parts)

    @property
    def reward_key(self) -> str:
        """The config key that names them."""
        return "reward.parts" if self.config.reward.name == SUM else "reward.name"

    @functools.cached_property
    def reward_model(self) -> RewardModel:
        """The reward model that the config names, without its weights."""
        config = self.config.reward
        with located("reward.path", max_tokens="reward.max_tokens"):
            return open_reward_model(self.reward_folder.folder, config.max_tokens)

    def compute(self, mesh: Mesh, *, backward: bool = False) -> Compute:
        """How every stage computes the decoder, on this mesh.

        Args:
          backward: a backward pass follows.
        """
        model = self.config.model
        with located(attention="model.attention", remat="model.remat"):
            check_remat(model.remat)
            platform = platform_of(mesh)
            backend = attention.choose(model.attention, platform)
            if model.attention == "auto" and (slower := attention.best(platform)).reason:
                self.say_once(f"attention: by {slower.name}, not by kernels in half the time: {slower.reason}")
            # XLA drops barriers on a CPU, so only a loop saves memory there.
            saves = platform == "cpu" and model.remat != "none"
            unroll = (model.unroll or (1 if saves else UNROLL.get(platform, 1))) if backward else 1
            return Compute(FLOATS[model.compute_dtype], model.remat, backend, mesh, unroll)

    def log_prob_settings(self, mesh: Mesh, *, backward: bool = False) -> LogProbSettings:
        """How the log-probs of policy and reference are computed; `backward` as in `compute`."""
        compute = self.compute(mesh, backward=backward)
        return LogProbSettings(self.config.log_probs.temperature, self.config.model.vocab_chunk, compute)

    def fresh_parameters(self, mesh: Mesh) -> Parameters:
        """Parameters of a model that no stage has trained yet: imported, or random."""
        model = self.config.model
        dtype = FLOATS[model.parameter_dtype]
        if model.path:
            folder = self.model_folder.folder
            self.say_once(f"model: {weights.conversions(model_folder.decoder_headers(folder), dtype)} ({folder})")
            if images := model_folder.left_out(folder):
                self.say_once(
                    f"model: the text part alone; {images} tensors of its vision part are left out ({folder})"
                )
            with located("model.path", mesh="mesh"):
                return model_folder.load(folder, mesh, dtype)
        return self.random_parameters(mesh)

    def random_parameters(self, mesh: Mesh) -> Parameters:
        """Parameters of a model of this shape that has learned nothing."""
        return self._draw(mesh, jax.random.key(self.config.seed), FLOATS[self.config.model.parameter_dtype])

    def fresh_adapters(self, mesh: Mesh) -> Parameters:
        """LoRA's adapters before their first update; float32 for a base of any type."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        return self._draw(mesh, key, jnp.float32, self.shape.lora)

    def _draw(self, mesh: Mesh, key: jax.Array, dtype: Any, adapted: Lora | None = None) -> Parameters:
        settings = self.shape.settings

        def draw(key: jax.Array) -> Parameters:
            return jax.tree.map(lambda x: x.astype(dtype), decoder.initial_parameters(settings, key, adapted))

        return jax.jit(draw, out_shardings=self._shardings(mesh, adapted))(key)

    def _shardings(self, mesh: Mesh, adapted: Lora | None) -> Any:
        settings = self.shape.settings
        shapes = decoder.abstract_parameters(settings, adapted)
        return parameter_shardings(mesh, decoder.logical_axes(settings, adapted), shapes)

    def trained_parameters(self, stage: str, mesh: Mesh, step: int | None = None) -> Parameters:
        """The parameters that a finished stage saved; for `train` with LoRA, the adapters alone.

        Args:
          step: of stage `train`, one that is kept; None for the last.
        """
        adapted = self.shape.lora if stage == "train" else None
        dtype = FLOATS[self.config.model.parameter_dtype] if adapted is None else jnp.float32
        layout = parameter_layout(mesh, self.shape.settings, dtype, adapted)
        folder = self.folder(stage)
        if step is not None:
            return load_parameters(kept_folder(folder, step), layout)
        try:
            return load_parameters(folder / "parameters", layout)
        except DamagedError as error:
            remedy = f"remove {folder / MANIFEST} and run again: its last checkpoint has them too"
            raise DamagedError(error.path, error.reason, remedy) from error

    def reference_parameters(self, mesh: Mesh) -> Parameters:
        """Parameters of the reference policy: the result of SFT, or the imported model."""
        return self.trained_parameters("sft", mesh) if "sft" in self.config.stages else self.fresh_parameters(mesh)

    def policy_parameters(self, mesh: Mesh, reference: Parameters, step: int | None = None) -> Parameters:
        """Parameters of `trained_graph` after stage `train`; with LoRA their base is `reference` itself, not a copy.

        Args:
          step: one that is kept; None for the last.
        """
        trained = self.trained_parameters("train", mesh, step)
        return trained if self.shape.lora is None else lora.join(reference, trained)

    def unit_reference(self) -> Parameters:
        """Those of `reference_parameters` on the unit mesh, as forward passes use them."""
        parameters = self.reference_parameters(self.unit_mesh)
        return stored_for_forward(parameters, FLOATS[self.config.model.compute_dtype])

    def unit_policy(self, reference: Parameters, step: int | None = None) -> Parameters:
        """Those of `policy_parameters` on the unit mesh, as forward passes use them; `reference` is so already."""
        parameters = self.policy_parameters(self.unit_mesh, reference, step)
        return stored_for_forward(parameters, FLOATS[self.config.model.compute_dtype])

    def unit_layout(self, mesh: Mesh) -> Parameters:
        """Shapes, types and shardings of `unit_reference`."""
        layout = parameter_layout(mesh, self.shape.settings, FLOATS[self.config.model.parameter_dtype])
        return forward_layout(layout, FLOATS[self.config.model.compute_dtype])

    def graph(self, side: str) -> nnx.GraphDef:
        """The graph of the "reference" or of the trained "policy"."""
        return self.shape.trained_graph if side == "policy" else self.shape.graph

    def say(self, line: str) -> None:
        """Prints a line once, whatever the number of processes, above any progress bar."""
        if is_first():
            tqdm.write(line, file=sys.stderr)

    def note(self, line: str) -> None:
        """Keeps a line that a check found, to be said before the first stage runs and only if all checks pass."""
        self.notes.append(line)

    def say_once(self, line: str) -> None:
        """Prints a line that several stages report, the first time only."""
        if line not in self._printed:
            self._printed.add(line)
            self.say(line)

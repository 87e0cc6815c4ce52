"""LoRA: at its start the base, merged the same model, and nothing but adapters is trained, kept or written."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file

from configs import default
from qrpo_jax import losses, pipeline, transforms
from qrpo_jax.data import loader
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh, parameter_shardings, place, row_sharding
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.lora_targets import make_lora, modules
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.lora import join, merge
from qrpo_jax.model.settings import Lora
from qrpo_jax.sampling.sampler import make_sampler
from qrpo_jax.stages import STAGES, export
from qrpo_jax.training.fit import fit
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from qrpo_jax.training.state import initial_state, parameter_layout, state_shardings
from qrpo_jax.training.step import LogProbSettings, completion_log_probs, make_step
from tests.helpers import steps, tiny
from tests.helpers.jobs import refused
from tests.helpers.programs import products
from tests.helpers.runs import Killed, books, killing, trainable

LORA = make_lora(tiny.SETTINGS, rank=3, alpha=5, targets=".*_proj")
GRAPH = decoder.graph(tiny.SETTINGS, LORA)
OBJECTIVE = make_objective("qrpo", beta=tiny.BETA, transform="identity", loss="mse")
BATCH = steps.BATCH


@functools.cache
def fresh():
    draw = jax.jit(decoder.initial_parameters, static_argnums=(0, 2))
    return draw(tiny.SETTINGS, jax.random.key(0), LORA)


@functools.cache
def filled(settings=tiny.SETTINGS, lora=LORA, seed=0):
    """Adapters that change log-probs by much."""
    rng = np.random.default_rng(seed)
    shapes = decoder.abstract_parameters(settings, lora)
    return jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32), shapes)


@functools.cache
def scorer(graph=GRAPH, dtype=jnp.float32):
    return jax.jit(
        lambda p, b: completion_log_probs(graph, p, b, LogProbSettings(vocab_chunk=7, compute=Compute(dtype)))
    )


@functools.cache
def reference():
    return np.asarray(scorer(tiny.GRAPH)(tiny.parameters(), BATCH))


@functools.cache
def compiled(microbatches=1, mesh_sizes=None, on_the_fly=False):
    mesh = make_mesh(*mesh_sizes) if mesh_sizes else None
    step = make_step(
        GRAPH,
        OBJECTIVE,
        steps.OPTIMIZER,
        log_prob_settings=LogProbSettings(vocab_chunk=7, compute=Compute(mesh=mesh)),
        microbatches=microbatches,
        reference_graph=tiny.GRAPH if on_the_fly else None,
    )
    return jax.jit(step, out_shardings=None if mesh is None else (shardings(mesh), None))


def shardings(mesh):
    return state_shardings(parameter_layout(mesh, tiny.SETTINGS, lora=LORA), steps.OPTIMIZER)


def update(adapters, batch=BATCH, microbatches=1, mesh_sizes=None, on_the_fly=False):
    state, frozen = initial_state(adapters, steps.OPTIMIZER, seed=0), tiny.parameters()
    if mesh_sizes is not None:
        mesh = make_mesh(*mesh_sizes)
        state, batch = jax.device_put(state, shardings(mesh)), place(batch, row_sharding(mesh))
        of_base = parameter_shardings(mesh, decoder.logical_axes(tiny.SETTINGS), frozen)
        frozen = jax.device_put(frozen, of_base)
    return jax.device_get(compiled(microbatches, mesh_sizes, on_the_fly)(state, batch, frozen))


@functools.cache
def plain():
    return update(filled(), BATCH.with_numbers(reference_log_prob=reference()))


def paths(tree):
    return {".".join(path) for path in nnx.traversals.flatten_mapping(tree)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_the_start_log_probs_are_those_of_the_base_bit_for_bit(dtype):
    base, run = scorer(tiny.GRAPH, dtype)(tiny.parameters(), BATCH), scorer(GRAPH, dtype)
    assert np.array_equal(run(join(tiny.parameters(), fresh()), BATCH), base)
    moved = np.abs(np.asarray(run(join(tiny.parameters(), filled()), BATCH)) - base)[BATCH.present_BxS]
    assert moved.min() > 0.01, moved


def test_at_the_start_the_loss_is_that_of_the_targets_alone():
    """The reference on the fly is the base, and the policy equals it."""
    metrics = update(fresh(), BATCH.with_numbers(reference_log_prob=np.full_like(reference(), np.nan)), 1, None, True)[
        1
    ]
    weight = BATCH.completions_BxS.weight * BATCH.present_BxS
    target = losses.calibrated_target(BATCH.completions_BxS.quantile, tiny.BETA, transforms.identity)
    expected = (weight * np.asarray(target) ** 2).sum() / weight.sum()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert abs(metrics["log_ratio_high"]) < 1e-5 and abs(metrics["log_ratio_low"]) < 1e-5, metrics


def test_adapters_start_as_pefts_do():
    for path, leaf in nnx.traversals.flatten_mapping(fresh()).items():
        if path[-1] == "b":
            assert not np.asarray(leaf).any(), path
            continue
        assert leaf.dtype == jnp.float32
        bound = np.prod(leaf.shape[1:-1]) ** -0.5
        assert 0.9 * bound < np.abs(leaf).max() <= bound, path
        np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.15, err_msg=str(path))
        assert not np.array_equal(leaf[0], leaf[1]), f"{path}: layers alike"


def test_merged_and_unmerged_are_the_same_model():
    base, adapters = tiny.parameters(), filled()
    merged = merge(base, adapters, LORA)
    np.testing.assert_allclose(
        scorer(tiny.GRAPH)(merged, BATCH), scorer()(join(base, adapters), BATCH), rtol=2e-5, atol=2e-5
    )
    assert jax.tree.all(jax.tree.map(lambda m, b: m.shape == b.shape and m.dtype == b.dtype, merged, base))
    tiny.assert_trees_equal(merge(base, fresh(), LORA), base)
    # From a base in bfloat16 the sum is rounded to what is asked for, and not to bfloat16 first.
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    exact = merge(jax.tree.map(lambda x: x.astype(jnp.float32), low), adapters, LORA)
    tiny.assert_trees_equal(
        merge(low, adapters, LORA, jnp.float32)["layers"]["mlp"]["up"], exact["layers"]["mlp"]["up"]
    )
    assert merge(low, adapters, LORA)["layers"]["mlp"]["up"].dtype == jnp.bfloat16
    untouched = [p for p in paths(base) if p.split(".")[-1] not in LORA.matrices]
    flat, before = nnx.traversals.flatten_mapping(merged), nnx.traversals.flatten_mapping(base)
    assert "embedding" in untouched and "layers.mlp_norm.scale" in untouched
    assert all(flat[tuple(p.split("."))] is before[tuple(p.split("."))] for p in untouched)


def test_completions_sampled_with_adapters_are_those_of_the_merged_model():
    """Through the cache; and sampled log-probs are scored log-probs."""
    options = dict(completions=2, max_new_tokens=5, temperature=1.0, end_tokens=(2,))
    prompts = np.asarray([[3, 4, 5, 0], [7, 8, 9, 10]], np.int32), np.asarray([3, 4], np.int32)
    keys = jax.random.split(jax.random.key(3), 2)
    base, adapters = tiny.parameters(), filled()
    drawn = jax.jit(make_sampler(GRAPH, **options))(join(base, adapters), *prompts, keys)
    merged = jax.jit(make_sampler(tiny.GRAPH, **options))(merge(base, adapters, LORA), *prompts, keys)
    assert np.array_equal(drawn.tokens_PxnxT, merged.tokens_PxnxT)
    np.testing.assert_allclose(drawn.log_probs_Pxn, merged.log_probs_Pxn, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_gradient_of_the_bases_size_is_computed(remat):
    """Such a gradient is a product over tokens with the shape of a matrix, or of its transpose."""
    d, h, g, k, f = 26, 6, 2, 10, 34
    matrices = {(d, h * k), (d, g * k), (h * k, d), (d, f), (f, d), (46, d)}
    matrices |= {shape[::-1] for shape in matrices}

    def shapes(graph, parameters, frozen):
        step = make_step(
            graph, OBJECTIVE, steps.OPTIMIZER, log_prob_settings=LogProbSettings(compute=Compute(remat=remat))
        )
        program = jax.make_jaxpr(step)(initial_state(parameters, steps.OPTIMIZER, 0), BATCH, frozen)
        return set(products(program.jaxpr))

    full = shapes(tiny.GRAPH, tiny.parameters(), {}) & matrices
    assert len(full) >= 6, full
    assert not shapes(GRAPH, filled(), tiny.parameters()) & matrices


def test_a_step_moves_every_adapter_and_nothing_else():
    before = jax.device_get(tiny.parameters())
    new, metrics = plain()
    assert paths(new.parameters) == paths(filled()) and all("_adapter." in p for p in paths(new.parameters))
    for path, leaf in nnx.traversals.flatten_mapping(steps.moments(new)).items():
        assert all(np.abs(layer).max() > 1e-7 for layer in leaf), f"no gradient reaches {path}"
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new.parameters, jax.device_get(filled()))
    assert min(jax.tree.leaves(moved)) > 1e-4, moved
    tiny.assert_trees_equal(jax.device_get(tiny.parameters()), before)
    assert np.isfinite(metrics["loss"])


def test_at_the_start_gradients_reach_b_alone_for_a_is_multiplied_by_nothing():
    new, _ = update(fresh(), BATCH.with_numbers(reference_log_prob=reference()))
    for path, leaf in nnx.traversals.flatten_mapping(steps.moments(new)).items():
        assert (np.abs(leaf).max() > 1e-7) == (path[-1] == "b"), path


def test_log_probs_on_the_fly_are_those_stored():
    got = update(filled(), BATCH.with_numbers(reference_log_prob=np.full_like(reference(), np.nan)), 1, None, True)
    steps.assert_same_update(got, plain())
    np.testing.assert_allclose(got[1]["loss"], plain()[1]["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("microbatches", "mesh_sizes"),
    [
        (2, (1, 2, 2, 2)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((4, None), (1, (2, 2, 2)), (2, (2, 2, 2)), (1, (4, 2, 1)), (1, (1, 1, 2, 2, 2)))
        ),
    ],
)
def test_microbatches_and_devices_with_the_reference_on_the_fly_change_nothing(microbatches, mesh_sizes):
    batch = tiny.batch(steps.TABLE, row_tokens=40, row_multiple=16)
    got = update(filled(), batch, microbatches, mesh_sizes, True)
    steps.assert_same_update(got, plain(), reordered=True)


def test_adapters_are_split_with_their_matrices():
    split = nnx.traversals.flatten_mapping(shardings(make_mesh(2, 2, 2)).parameters["layers"])
    for path, axes in {
        ("attention", "q_adapter", "a"): (None, ("fsdp", "context"), None),
        ("attention", "q_adapter", "b"): (None, None, "tensor", None),
        ("mlp", "down_adapter", "a"): (None, "tensor", None),
        ("mlp", "down_adapter", "b"): (None, None, ("fsdp", "context")),
    }.items():
        assert tuple(split[path].spec) == axes, path


def test_the_state_is_three_times_the_adapters_and_no_more():
    """Adapters and two moments: the base is in neither optimizer nor checkpoint, whatever its size."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    state = trainable(steps.OPTIMIZER, mesh, fresh, LORA).abstract()
    count = decoder.parameter_count(tiny.SETTINGS, LORA)
    # r (inputs + outputs) of q, k, v, o, gate, up, down in 3 layers.
    assert count == 3 * 3 * ((26 + 60) + 2 * (26 + 20) + (60 + 26) + 3 * (26 + 34)), count
    large = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1)
    small = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim <= 1)
    assert large == 3 * count and small < 8, (large, small, count)


def test_weight_decay_pulls_adapters_towards_the_base():
    options = Optimization(0.1, schedule="constant", warmup_share=0.0, b1=0.9, b2=0.9, weight_decay=0.5, clip_norm=0)
    optimizer, _ = make_optimizer(options, steps=1)
    adapters = {"layers": {"mlp": {"down_adapter": filled()["layers"]["mlp"]["down_adapter"]}}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, adapters), optimizer.init(adapters), adapters)
    for leaf in jax.tree.leaves(jax.tree.map(lambda u, p: u / p, updates, adapters)):
        np.testing.assert_allclose(leaf, -0.05, rtol=1e-5)


def test_interrupted_and_resumed_equals_undisturbed_and_adapters_alone_are_kept(tmp_path):
    table, steps = tiny.examples(17), 4
    options = Optimization(0.05, schedule="linear", warmup_share=0, b1=0.9, b2=0.9, weight_decay=0, clip_norm=1)
    optimizer, schedule = make_optimizer(options, steps)
    step = make_step(GRAPH, OBJECTIVE, optimizer, log_prob_settings=LogProbSettings(), reference_graph=tiny.GRAPH)
    what = trainable(optimizer, make_mesh(1, 1, 1, devices=jax.devices()[:1]), fresh, LORA)

    def run(directory, kill_at=0):
        batches = killing(loader.batches(table, tiny.plan(table, batch_units=5, epochs=2, seed=0)), kill_at)
        with books(directory, steps=steps, name=table.name, schedule=schedule) as writing:
            return fit(step, what, batches, frozen=tiny.parameters(), **writing)

    undisturbed = jax.device_get(run(tmp_path / "a"))
    with pytest.raises(Killed):
        run(tmp_path / "b", kill_at=4)
    tiny.assert_trees_equal(jax.device_get(run(tmp_path / "b")), undisturbed)
    assert tiny.largest(jax.tree.map(lambda a, b: a - b, undisturbed, jax.device_get(fresh()))) > 0.01
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore((tmp_path / "b" / "checkpoints" / str(steps) / "state").absolute())
    assert paths(kept["parameters"]) == paths(fresh())
    assert sum(x.size for x in jax.tree.leaves(kept)) < 3 * decoder.parameter_count(tiny.SETTINGS, LORA) + 8


WORDS = [chr(97 + i) for i in range(20)]
SMALL = decoder.DecoderSettings(
    vocab_size=32, d_model=14, layers=2, heads=2, kv_heads=1, head_dim=6, d_ff=11, max_positions=64
)


def base_folder(folder):
    tokenizer = vocabulary_tokenizer(WORDS)
    words = make_text(tokenizer, "plain", (tokenizer.eos_token_id,))
    model_folder.save(folder, SMALL, tiny.parameters(SMALL), words)
    return folder


HELD_OUT = {"keep_every": 1, "evaluate_every": 1, "held_out": 2}  # of the rows to train on


def tuned(folder, workdir, stages, **train):
    """A job that trains adapters on completions that come with their rewards."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(13):
        said = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(3)]
        line = {"prompt": " ".join(rng.choice(WORDS, 3)), "completions": said, "rewards": rng.uniform(size=2).tolist()}
        line["rewards"].append(float(rng.uniform()))
        lines.append(line | {"reference_rewards": rng.uniform(size=5).tolist()})
    (folder.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = default.get_config()
    config.stages = stages
    config.model.path, config.model.template = str(folder), "plain"
    config.prompts.update({"source": f"jsonl:{folder.parent / 'rows.jsonl'}", "count": 0, "held_out": 3})
    config.prompts.update({"max_tokens": 8, "unit": 8})
    config.sample.update({"completions": 0, "max_new_tokens": 3})
    config.pack.update({"max_tokens": 16, "row_tokens": 16, "slots": 2})
    config.reward.name = "dialogue_share"
    config.evaluate.update({"completions": 2, "max_new_tokens": 3, "checkpoints": ("all",)})
    config.train.update({"batch_size": 8, "learning_rate": 0.02, "beta": 0.5, **train})
    config.lora.update({"rank": 2, "alpha": 6.0, "targets": "self_attn.*|down_proj"})
    config.log.tensorboard = False
    config.export.adapter = "peft"
    job = Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)
    job.__dict__["mesh"] = make_mesh(1, 1, 1, devices=jax.devices()[:1])  # programs for one device compile faster
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = base_folder(tmp_path_factory.mktemp("model") / "base")
    stages = ("sample", "train", "evaluate", "export")
    job = tuned(folder, tmp_path_factory.mktemp("run"), stages, reference_log_probs="on_the_fly", **HELD_OUT)
    assert pipeline.run(job)
    return job, folder


@pytest.mark.slow
def test_kept_adapters_make_a_curve_and_held_out_rows_have_their_loss(finished):
    job, _ = finished
    lines = [json.loads(line) for line in (job.folder("train") / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out_loss"] for line in lines]
    assert len(losses) >= 2 and len(set(losses)) == len(losses) and np.isfinite(losses).all(), losses
    curve = json.loads((job.workdir / "results.json").read_text())["curve"]
    assert [point["step"] for point in curve] == list(range(len(lines) + 1))
    kl = [point["kl_to_reference_k3"] for point in curve]
    assert kl[0] == 0 and all(value > 0 for value in kl[1:]), kl


def test_a_job_trains_evaluates_and_exports_adapters(finished):
    job, folder = finished
    lines = [json.loads(line) for line in (job.folder("train") / "metrics.jsonl").read_text().splitlines()]
    assert max(abs(lines[0]["log_ratio_high"]), abs(lines[0]["log_ratio_low"])) < 1e-5, lines[0]
    results = json.loads((job.workdir / "results.json").read_text())
    assert results["policy"]["kl_to_reference_k3"] > 1e-4, results["policy"]
    adapters = job.trained_parameters("train", job.mesh)
    assert {p.split(".")[2] for p in paths(adapters)} == {f"{m}_adapter" for m in ("q", "k", "v", "o", "down")}

    config = json.loads((job.folder("export") / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder) and (config["r"], config["lora_alpha"]) == (2, 6)
    assert config["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    # The merged model, from what was written: W + alpha / r B A, as PEFT stores them.
    written = load_file(job.folder("export") / "adapter" / "adapter_model.safetensors")
    assert len(written) == 2 * 5 * SMALL.layers
    words = job.text
    model_folder.save(job.workdir / "merged", SMALL, jax.device_get(export.merged_parameters(job)), words)
    merged, base = (load_file(path / "model.safetensors") for path in (job.workdir / "merged", folder))
    for name, weight in base.items():
        low, high = (written.get(f"base_model.model.{name[:-7]}.lora_{x}.weight") for x in "AB")
        expected = weight if low is None else weight + 6 / 2 * high @ low
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert (low is None) == np.array_equal(merged[name], weight), name


@pytest.mark.slow
def test_a_job_with_stored_log_probs_trains_the_same_adapters(finished, tmp_path):
    on_the_fly, folder = finished
    job = tuned(folder, tmp_path, ("sample", "reference", "train"), **HELD_OUT)
    assert pipeline.run(job)
    trained = [jax.device_get(j.trained_parameters("train", j.mesh)) for j in (job, on_the_fly)]
    tiny.assert_trees_close(*trained, rtol=1e-3, atol=1e-4)


def test_another_lora_is_another_run(finished, tmp_path):
    job, _ = finished
    with pytest.raises(ValueError, match=r"lora\.rank: 2 -> 3"):
        pipeline.run(
            Job(FrozenConfigDict(job.config.to_dict() | changed(job, rank=3)), job.workdir, Shard(0, 1), STAGES)
        )


def changed(job, **lora):
    return {"lora": job.config.lora.to_dict() | lora}


@pytest.mark.parametrize(
    ("targets", "matrices"),
    [
        ("q_proj|v_proj", ("q", "v")),
        ("self_attn.q_proj", ("q",)),
        ("self_attn.*", ("q", "k", "v", "o")),
        ("mlp.*", ("gate", "up", "down")),
        (".*_proj", ("q", "k", "v", "o", "gate", "up", "down")),
    ],
)
def test_targets_are_matched_against_hugging_faces_names(targets, matrices):
    assert make_lora(tiny.SETTINGS, rank=1, alpha=1, targets=targets) == Lora(1, 1.0, matrices)


SEPARATE = {f"self_attn.{x}_proj" for x in "qkvo"}
# Linear maps of families that store some of them fused.
FUSED = {
    "Phi3ForCausalLM": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    "GlmForCausalLM": SEPARATE | {"mlp.gate_up_proj", "mlp.down_proj"},
    "Glm4ForCausalLM": SEPARATE | {"mlp.gate_up_proj", "mlp.down_proj"},
    "GraniteMoeHybridForCausalLM": SEPARATE | {"shared_mlp.input_linear", "shared_mlp.output_linear"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_its_linear_maps(family):
    names = [module.name for module in modules(decoder.DecoderSettings(**SMALL.__dict__ | {"family": family}))]
    expected = {family: SEPARATE | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}, **FUSED}[family]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0; an adapter needs at least 1"),
        ({"alpha": 0}, "alpha is 0; it must be finite, above 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        (
            {"targets": "query"},
            "'query' matches no module of LlamaForCausalLM; it must match one or more of self_attn.q",
        ),
        ({"targets": ""}, "targets '' matches no module"),
        ({"targets": "proj"}, "matches no module"),
        ({"targets": "q_proj|embed_tokens"}, "names embed_tokens, which has no adapters; allowed: self_attn.q_proj"),
        ({"targets": ".*"}, "which has no adapters"),
        ({"targets": "input_layernorm"}, "names input_layernorm, which has no adapters"),
        ({"targets": "(q_proj"}, "which is no regular expression"),
    ],
)
def test_what_cannot_be_adapted_is_refused(change, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        make_lora(tiny.SETTINGS, **{"rank": 2, "alpha": 1.0, "targets": "q_proj"} | change)
    assert "\n" not in str(error.value) and error.value.about == tuple(change)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lora__rank": -1}, "lora.rank is -1; it must be at least 0"),
        ({"lora__rank": 2, "lora__targets": "nothing"}, "matches no module"),
        ({"lora__rank": 2, "stages": ("sft", "sample")}, "only stage 'train' has adapters"),
        ({"train__reference_log_probs": "later"}, "train.reference_log_probs is 'later'; allowed: stored, on_the_fly"),
        ({"train__reference_log_probs": "on_the_fly"}, "'on_the_fly' needs LoRA"),
        ({"train__reference_log_probs": "on_the_fly", "lora__rank": 2}, "no use for what stage 'reference' stores"),
        (
            {
                "train__reference_log_probs": "on_the_fly",
                "train__objective": "simpo",
                "lora__rank": 2,
                "stages": ("sft", "sample", "score", "train"),
            },
            "'simpo' uses no log π_ref",
        ),
        ({"export__adapter": "gguf"}, "export.adapter is 'gguf'; allowed: merged, peft"),
        ({"export__adapter": "peft"}, "'peft' needs LoRA"),
        ({"export__adapter": "peft", "lora__rank": 2}, "needs a base that is a model folder"),
        ({"stages": ("sft", "sample", "score", "train"), "lora__rank": 2}, "train.reference_log_probs='on_the_fly'"),
    ],
)
def test_a_config_without_a_place_for_lora_is_refused(tmp_path, overrides, message):
    refused(tmp_path, message, **overrides)


def test_adapters_that_are_not_finite_are_not_exported(tmp_path):
    bad = jax.tree.map(lambda x: x * jnp.inf, filled())
    with pytest.raises(ValueError, match="q_proj.lora_A is not finite as float32"):
        adapter_folder.save(tmp_path / "out", tiny.SETTINGS, LORA, bad, base="base")
    assert not list(tmp_path.iterdir())

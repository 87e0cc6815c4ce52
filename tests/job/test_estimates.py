"""The search of the largest batch, the configs of published models, and stage `compile` on a tiny model."""

import importlib
import json

import pytest
from ml_collections import FrozenConfigDict

from configs import at_scale
from qrpo_jax import pipeline
from qrpo_jax.devices.program.compilation import DoesNotFitError
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.config import read_settings
from qrpo_jax.job import estimates
from qrpo_jax.job.estimates import MOST, TRIES, next_try
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.model.decoder import parameter_count
from qrpo_jax.model.flops import causal_pairs, forward_flops
from qrpo_jax.stages import STAGES
from tests.helpers.compile_jobs import check_program, compiling

# Of the published folders: the numbers of parameters that their model cards or index files give.
PUBLISHED = {
    "llama32_1b": 1_235_814_400,
    "tulu3_8b": 8_030_326_784,
    "mistral_7b": 7_241_732_096,
    "qwen3_8b": 8_190_735_360,
    "gemma2_9b": 9_241_705_984,
    "llama3_70b": 70_553_706_496,
    "llama31_405b": 405_853_388_800,
}
NAMES = [*PUBLISHED, "apertus_70b"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_published_models(name):
    count = parameter_count(read_settings(at_scale.SHAPES / name))
    assert count == PUBLISHED.get(name, count)
    assert name in PUBLISHED or round(count / 1e9, 1) == 70.6


@pytest.mark.parametrize("name", NAMES)
def test_a_config_at_scale_runs_the_check_of_its_stage(name, tmp_path):
    pytest.importorskip("libtpu")
    config = importlib.import_module(f"configs.{name}").get_config()
    config.stages = ("compile",)
    job = Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES)
    pipeline.check(job)
    assert name in importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("fixed", [0.0, 3.1, 40.0])
@pytest.mark.parametrize("slope", [0.4, 1.7, 11.0, 49.0])
def test_the_search_finds_the_largest_batch_in_few_tries(fixed, slope, said):
    """Memory in GB: arguments of 3 and a part that does not grow with the batch, on a device of 100.

    Args:
      said: the compiler says how much a program that does not fit needs.
    """
    capacity, fixed, slope = 100e9, fixed * 1e9, slope * 1e9
    needed, times, tries, arguments = {}, 1, 0, min(fixed, 3e9)
    while times is not None and tries < TRIES:
        size = fixed + slope * times
        needed[times] = size if size <= capacity or said else 1.01 * capacity
        times, tries = next_try(needed, arguments, capacity), tries + 1
    found = max(times for times, size in needed.items() if size <= capacity)
    largest = min(int((capacity - fixed) / slope), MOST)
    assert 0.9 * largest <= found <= largest, (found, largest, needed)
    if slope > 1e9:
        assert found == largest, needed


def test_the_stage_writes_what_it_finds(tmp_path, capsys):
    job = compiling(tmp_path, compile__rows=8, compile__programs=("reference",), log_probs__batch_rows=8)
    assert pipeline.run(job)
    results = json.loads((job.folder("compile") / "compile.json").read_text())
    program, settings = results["reference"], read_settings(tmp_path / "shape")
    assert (program["rows"], program["row_tokens"], program["tokens"]) == (8, 256, 8 * 256)
    assert program["flops"]["total"] == forward_flops(settings, 8 * 256, causal_pairs(8, 256)).total
    check_program(program)
    assert "all-gather" not in program["received_gb"]["ici"], "each device has a copy of so small a model"
    assert results["machine"]["unit_mesh"]["data"] == program["devices"] == 4, results["machine"]
    page = (job.folder("compile") / "report.html").read_text()
    assert "Reference log-probs" in page and "v5e:2x2" in page
    assert "Reference log-probs" in capsys.readouterr().err


@pytest.mark.slow
def test_all_programs_compile_for_absent_chips(tmp_path):
    job = compiling(tmp_path, compile__rows=8, model__attention="auto")
    assert pipeline.run(job)
    results = json.loads((job.folder("compile") / "compile.json").read_text())
    for name in ("train", "reference", "sample"):
        check_program(results[name])
    train, count = results["train"], parameter_count(read_settings(tmp_path / "shape"))
    assert train["received_gb"]["ici"]["all-gather"] > 0, train
    assert 0 < results["sample"]["reading_seconds"] < results["sample"]["step_seconds"], results["sample"]
    # Weights and two moments, all float32 and split four ways; small arrays are padded to tiles.
    state = 3 * 4 * count / 4 / 1e9
    assert state <= train["memory_gb"]["arguments"] + 0.001 <= 2 * state, train["memory_gb"]
    assert train["memory_gb"]["aliased"] == pytest.approx(train["memory_gb"]["arguments"], rel=0.1, abs=0.001)
    assert train["flops"]["matmul"] == pytest.approx(3 * results["reference"]["flops"]["matmul"])
    assert results["sample"]["rows"] == 8


def test_a_program_that_does_not_fit_is_named_with_its_largest_arrays_and_the_others_go_on(
    tmp_path, capsys, monkeypatch
):
    def estimate(job, mesh, name, *others):
        if name == "train":
            raise DoesNotFitError(40e9, 16e9, ["16.00G f32[64,4096,16384] from jit(step)/dot_general"])
        return real(job, mesh, name, *others)

    real = estimates.estimate
    monkeypatch.setattr(estimates, "estimate", estimate)
    job = compiling(tmp_path, compile__rows=0, compile__programs=("train", "reference"))
    assert pipeline.run(job)
    results = json.loads((job.folder("compile") / "compile.json").read_text())
    train = results["train"]
    assert (train["fits"], train["mfu"], train["memory_gb"]["total"]) == (False, None, 40.0), train
    assert results["reference"]["fits"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "does not fit: it" in line]
    assert "needs 40.0 GB of 16.0 GB a device" in line and train["largest_arrays"][0] in line, line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"compile__topology": "v9:2x2"}, r"topology is 'v9:2x2'.*config.compile.topology"),
        ({"compile__topology": ""}, r"no peaks are known for a 'cpu'.*config.compile.topology"),
        ({"compile__rows": 6}, r"compile.rows is 6; .*a multiple of 4 \(config.compile.rows\)"),
        (
            {"compile__programs": ("trian",)},
            r"compile.programs has 'trian'; allowed: train, reference, sample",
        ),
        ({"mesh__tensor": 3}, r"config.mesh"),
        ({"model__path": "./no/such"}, r"no/such does not exist \(config.model.path\)"),
        ({"model__remat": "some"}, r"remat is 'some'"),
    ],
)
def test_mistakes_are_refused_with_their_key(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        pipeline.check(compiling(tmp_path, **({"compile__rows": 8} | overrides)))
    assert not (tmp_path / "run").exists()

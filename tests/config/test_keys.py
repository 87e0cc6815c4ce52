"""A key accepts what its kind allows, in the type of its default, and names what it allows when it refuses."""

import math

import numpy as np
import pytest

from configs import default
from qrpo_jax import advantages, losses, partition, quantiles
from qrpo_jax.config.config import keys_of
from qrpo_jax.config.keys import Choice, Either, Name, NotAllowedError, Number, Several, Switch, Text, Whole
from qrpo_jax.config.overrides import Override, apply
from qrpo_jax.data import batch_order, mixes, views
from qrpo_jax.data.layouts import LAYOUTS
from qrpo_jax.data.text import TEMPLATES
from qrpo_jax.data.thoughts import THINKING
from qrpo_jax.devices.dtypes import COMPUTE
from qrpo_jax.job.programs import PROGRAMS
from qrpo_jax.job.unit_mesh import UNITS
from qrpo_jax.model.attention import BACKENDS
from qrpo_jax.model.compute import REMAT
from qrpo_jax.rewards.problems import BLOCKS
from qrpo_jax.rewards.sandbox.pool import LEVELS
from qrpo_jax.sampling.openai import KINDS
from qrpo_jax.sweep.figures import FIGURES
from qrpo_jax.training import token_objectives
from qrpo_jax.training.objectives import OBJECTIVES
from qrpo_jax.training.optimizer import SCHEDULES


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        (Whole(1, least=1), True, "it must be a whole number, at least 1"),
        (Whole(1, least=1), 0, "it must be at least 1"),
        (Whole(1, least=1), 2.0, "it must be a whole number, at least 1"),
        (Whole(1, least=1), "7", "it must be a whole number, at least 1"),
        (Whole(0, least=0), 2**31, "it must be at most 2147483647"),
        (Either(Whole(1, least=0), Name()), -1, "it must be at least 0, or a name"),
        (Either(Whole(1, least=0), Name()), "-1", "it must be a whole number, at least 0, or a name"),
        (Name(), "a b", "it must be a name"),
        (Whole(0, least=0, most=7), 8, "it must be a whole number from 0 to 7"),
        (Number(1.0, above=0), 0, "it must be finite, above 0"),
        (Number(1.0, above=0), math.nan, "it must be finite, above 0"),
        (Number(1.0, above=0), math.inf, "it must be finite, above 0"),
        (Number(1.0), 10**400, "it must be finite"),
        (Number(1.0, above=0), True, "it must be a number, finite, above 0"),
        (Number(1.0, above=0), None, "it must be a number, finite, above 0"),
        (Number(0.9, least=0, below=1), 1, "it must be finite, at least 0, below 1"),
        (Number(1.0, least=0, most=2), 3, "it must be a number from 0 to 2"),
        (Choice("mse", "mae"), "maee", "allowed: mse, mae; did you mean 'mae'?"),
        (Choice("mse", "mae"), 3, "allowed: mse, mae"),
        (Switch(False), 1, "it must be True or False"),
        (Text(""), 3, "it must be a text in quotes, of one line"),
        (Text(""), "a\0b", "it must be a text in quotes, of one line"),
        (Text("a", empty=False), " ", "it must not be empty"),
        (Several((1,), of=Whole(1, least=1)), 3, "it must be a tuple or list"),
        (Several((), of=Text(empty=False)), ",", "it must be a tuple or list"),
        (Several((), of=Text(empty=False)), "\n\n", "it must be a tuple or list"),
        (Several((1,), of=Whole(1, least=1)), (3, 0), "each must be at least 1|it must be at least 1"),
        (Several((1,), of=Whole(1, least=1), distinct=True), (3, 3), "name at least one, each once"),
        (Several((1,), of=Whole(1, least=1), distinct=True), (), "name at least one, each once"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(key, value, rule) -> None:
    with pytest.raises(NotAllowedError) as error:
        key.check(value)
    assert str(error.value) in rule.split("|"), str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (Whole(1), np.int64(7), 7),
        (Number(1.0), 3, 3.0),
        (Number(1.0), np.float32(0.5), 0.5),
        (Switch(False), True, True),
        (Several(("a",), of=Text()), ["b", "c"], ("b", "c")),
        (Several(("a",), of=Text()), "b, c", ("b", "c")),
        (Several((), of=Text(empty=False, lines=True)), ("\n\n", " ", "a\n"), ("\n\n", " ", "a\n")),
    ],
)
def test_an_allowed_value_gets_the_type_of_the_default(key, value, expected) -> None:
    checked = key.check(value)
    assert checked == expected and type(checked) is type(key.default), checked


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (Whole(1), "-3", -3),
        (Either(Whole(1, least=0), Number(0.5, above=0, below=1), Name()), "0.25", 0.25),
        (Either(Whole(1, least=0), Number(0.5, above=0, below=1), Name()), "test_prefs", "test_prefs"),
        (Number(1.0), "1e-3", 1e-3),
        (Switch(True), "False", False),
        (Switch(False), "true", True),
        (Text(""), "a = b", "a = b"),
        (Several(("a",), of=Text()), "compile,report", ("compile", "report")),
        (Several(("a",), of=Text()), "compile", ("compile",)),
        (Several(("a",), of=Text()), "('compile', 'report')", ("compile", "report")),
        (Several(("a",), of=Text()), "", ()),
        (Several((1.0,), of=Number(1.0)), "0.1,2", (0.1, 2.0)),
        (
            Several(("a",), of=Text()),
            "log,affine(power(2), 0.5, 2),piecewise-linear((0, 0), (1, 1))",
            ("log", "affine(power(2), 0.5, 2)", "piecewise-linear((0, 0), (1, 1))"),
        ),
    ],
)
def test_a_command_line_writes_values_as_a_reader_expects(key, text, expected) -> None:
    assert key.check(key.parse(text)) == expected


def test_every_default_is_allowed() -> None:
    config = default.get_config()
    for name, key in keys_of(config):
        section, _, last = name.rpartition(".")
        value = (config[section] if section else config)[last]
        assert key.check(value) == value and type(key.check(value)) is type(value), name


def test_the_choices_of_a_key_are_the_entries_of_the_table_that_it_is_looked_up_in() -> None:
    tables = {
        "model.template": TEMPLATES,
        "model.thinking": THINKING,
        "model.compute_dtype": COMPUTE,
        "model.parameter_dtype": COMPUTE,
        "model.attention": ("auto", *BACKENDS),
        "model.remat": REMAT,
        "mesh.units": UNITS,
        "reward.block": BLOCKS,
        "sft.schedule": SCHEDULES,
        "sft.moment_dtype": COMPUTE,
        "train.schedule": SCHEDULES,
        "train.moment_dtype": COMPUTE,
        "train.objective": OBJECTIVES,
        "train.partition": partition.PARTITIONS,
        "train.token_average": token_objectives.AVERAGES,
        "train.advantage_scale": advantages.SCALES,
        "train.loss": losses.REGRESSION,
        "train.shuffle": batch_order.SHUFFLES,
        "pack.over_long": views.OVER_LONG,
        "prompts.layout": ("", *LAYOUTS),
        "reward.isolation": ("auto", *LEVELS),
        "reward.require_isolation": LEVELS,
        "select.units": views.VIEWS,
        "select.estimator": quantiles.ESTIMATORS,
        "select.ties": quantiles.TIES,
        "select.side": losses.SELECTORS,
        "export.dtype": COMPUTE,
        "openai.prompts": KINDS,
        "benchmark.mix": mixes.MIXES,
        "compile.programs": PROGRAMS,
        "compare_transforms.estimators": quantiles.ESTIMATORS,
    }
    # These are compared with names in the code.
    tables |= {"train.data": ("stored", "on_policy"), "rollout.order": ("shuffled", "source")}
    tables |= {"rollout.quantiles": ("reference", "group")}
    tables |= {"train.reference_log_probs": ("stored", "on_the_fly"), "export.adapter": ("merged", "peft")}
    tables |= {"sample.backend": ("local", "openai"), "collect.sort": ("order", *FIGURES)}
    choices = {
        name: (key.of if isinstance(key, Several) else key).names
        for name, key in keys_of(default.get_config())
        if isinstance(key.of if isinstance(key, Several) else key, Choice)
    }
    assert {name: set(names) for name, names in choices.items()} == {n: set(table) for n, table in tables.items()}


@pytest.mark.parametrize("first", [7, 0.1, "test_prefs"])
@pytest.mark.parametrize("then", [20, 0.25, "test", 1])
def test_a_key_of_several_kinds_takes_each_after_each(first: object, then: object) -> None:
    """A share in a config file, then a number on the command line, is that number."""
    config = default.get_config()
    config.prompts.held_out = first
    apply(config, [Override("prompts.held_out", str(then))])
    assert config.prompts.held_out == then and type(config.prompts.held_out) is type(then)

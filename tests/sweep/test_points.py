"""The points of a sweep: all combinations, each with a whole config and a name of its own; mistakes are one line."""

from typing import Any

import pytest

from configs import default
from qrpo_jax import command_line
from qrpo_jax.errors import UserError
from qrpo_jax.sweep.points import points_of
from tests.helpers.sweep_jobs import toy_config


def test_points_are_all_combinations_in_order_and_values_are_those_of_their_keys():
    points = points_of(toy_config({"train.beta": [1, 0.3], "train.objective": ["qrpo", "dpo"], "seed": [0, 7]}))
    assert [point.name for point in points[:3]] == [
        "beta=1.0,objective=qrpo,seed=0",
        "beta=1.0,objective=qrpo,seed=7",
        "beta=1.0,objective=dpo,seed=0",
    ]
    assert len(points) == 8 and len({point.name for point in points}) == 8
    for point in points:
        config = point.config
        assert point.settings == {
            "train.beta": config.train.beta,
            "train.objective": config.train.objective,
            "seed": config.seed,
        }
        assert config.sweep == () and isinstance(config.train.beta, float), config.sweep


def test_a_list_of_grids_has_values_that_go_together():
    grids = [
        {"train.objective": ["qrpo"], "train.beta": [0.1, 0.3]},
        {"train.objective": ["dpo"], "train.beta": [0.01], "select.units": ["best_worst"]},
    ]
    points = points_of(toy_config(grids))
    found = [(p.config.train.objective, p.config.train.beta, p.config.select.units) for p in points]
    assert found == [("qrpo", 0.1, "singles"), ("qrpo", 0.3, "singles"), ("dpo", 0.01, "best_worst")], found


def test_a_name_depends_on_the_point_alone():
    few, many = ({"train.beta": [0.1]}, {"train.beta": [0.3, 0.1]})
    assert points_of(toy_config(few))[0].name == points_of(toy_config(many))[1].name


def test_names_of_values_that_look_alike_differ():
    transforms = ["power(0.7)", "power-0.7-", "affine(log, 0.5, 2)", "affine(log, 0.5, 2.0)"]
    names = [point.name for point in points_of(toy_config({"train.transform": transforms}))]
    assert len(set(names)) == len(names) and not any("/" in name or " " in name for name in names), names


def test_a_long_name_fits_into_a_file_system_and_stays_unique():
    texts = ["x" * 300, "x" * 299 + "y"]
    names = [point.name for point in points_of(toy_config({"openai.model": texts}))]
    assert len(set(names)) == 2 and all(len(name) <= 200 for name in names), names


@pytest.mark.parametrize(
    "sweep, message",
    [
        ({"train.bta": [1]}, r"no config key train.bta; did you mean train.beta\? \(config.sweep"),
        (
            {"train.beta": [0.1, -1]},
            r"beta is -1; it must be finite, at least 0 \(config.sweep, config.train.beta\)",
        ),
        ({"stages": [["train"]]}, "stages cannot be swept: all points have the same stages"),
        ({"mesh.cpu_devices": [1, 2]}, "mesh.cpu_devices cannot be swept"),
        ({"sweep": [[]]}, "sweep cannot be swept"),
        ({"collect.sort": ["kl"]}, "collect.sort cannot be swept"),
        ([{"seed": [0, 1]}, {"seed": [1]}], r"the sweep has the point seed=1 twice"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_with_its_key(sweep: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        points_of(toy_config(sweep))
    assert "config.sweep" in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    "sweep, message",
    [
        ({"train.beta": []}, "sweep is .*; train.beta must have at least one value"),
        ({"train.beta": 0.1}, "train.beta has 0.1, and must have a list of values"),
        ({"train.beta": [0.1, 0.1]}, "train.beta has 0.1 twice"),
        ([{}], "it must be a dict of lists, such as"),
        ("train.beta", "it must be a dict of lists, such as"),
        ({1: [2]}, "it must be a dict of lists, such as"),
    ],
)
def test_what_is_no_grid_is_refused_where_it_is_set(sweep: Any, message: str):
    with pytest.raises(UserError, match=message) as error:
        default.get_config().sweep = sweep
    assert "(config.sweep)" in str(error.value)


def test_the_table_s_keys_are_checked_with_the_sweep():
    with pytest.raises(UserError, match="collect.best_of has 9; allowed: up to evaluate.completions, which is 8"):
        points_of(toy_config(collect__best_of=(2, 9)))
    with pytest.raises(UserError, match="did you mean train.objective.*config.collect.method"):
        points_of(toy_config(collect__method=("objective",)))


COMMAND = ["qrpo-jax", "--config=quickstart", "--workdir=runs/none"]


def test_a_command_line_writes_a_sweep_and_an_empty_one_is_none():
    request = command_line.read([*COMMAND, '--config.sweep={"train.beta": [0.1, 0.3], "seed": [0, 1]}', "--shard=3/4"])
    assert not isinstance(request, command_line.RowsRequest)
    assert [point.name for point in request.points][2:] == ["beta=0.3,seed=0", "beta=0.3,seed=1"]
    assert request.shard == (3, 4)
    none = command_line.read([*COMMAND, "--config.sweep={}"])
    assert not isinstance(none, command_line.RowsRequest) and none.points == ()


def test_more_shards_than_points_are_refused_and_a_sweep_may_be_forked_by_each():
    sweep = '--config.sweep={"seed": [0, 1]}'
    with pytest.raises(UserError, match="a sweep is split by its points, and this one has 2; allowed: n up to 2"):
        command_line.read([*COMMAND, sweep, "--shard=0/3"])
    assert command_line.read([*COMMAND, sweep, "--shard=1/2", "--fork=runs/other"])
    with pytest.raises(UserError, match="--fork is for the first start of a run"):
        command_line.read([*COMMAND, "--shard=1/2", "--fork=runs/other"])

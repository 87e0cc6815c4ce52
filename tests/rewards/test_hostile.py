"""Hostile programs at every level that this machine holds: nothing escapes, every verdict is right, and the next honest
completion in the same worker is unharmed."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from qrpo_jax.rewards.sandbox import kernel
from qrpo_jax.rewards.sandbox.pool import IsolationError
from tests.rewards.hostile import classes, files, loops, memory, processes, programs, reports
from tests.rewards.hostile.attack import EVERYWHERE, Attack
from tests.rewards.hostile.outside import Outside, Ran

KINDS = {
    kind.__name__.rpartition(".")[2]: kind for kind in (classes, files, loops, memory, processes, programs, reports)
}
ATTACKS: list[Attack] = [attack for kind in KINDS.values() for attack in kind.ATTACKS]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with ExitStack() as stack:
        yield Outside(tmp_path_factory.mktemp("outside"), stack)


@pytest.fixture(scope="module")
def ran(outside: Outside) -> dict[str, Ran]:
    """By level; at the same time, because each uses one core."""

    def run(level: str) -> Ran | None:
        try:
            return Ran(level, ATTACKS, outside)
        except IsolationError:  # bubblewrap is not here
            return None

    with ThreadPoolExecutor(len(EVERYWHERE)) as pool:
        runs = dict(zip(EVERYWHERE, pool.map(run, EVERYWHERE), strict=True))
    for level, one in runs.items():
        print(f"{level}: {len(one.outputs)} attacks in {one.seconds:.1f} s" if one else f"{level}: not here")
    return {level: one for level, one in runs.items() if one is not None and one.level == level}


def need(ran: dict[str, Ran], level: str) -> Ran:
    if level not in ran:
        pytest.skip(f"this machine does not hold level {level}")
    return ran[level]


def test_there_are_many_attacks_and_no_two_have_one_name() -> None:
    counts = Counter(attack.name for attack in ATTACKS)
    assert len(ATTACKS) >= 200 and counts.most_common(1)[0][1] == 1, (len(ATTACKS), counts.most_common(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", EVERYWHERE)
def test_every_verdict_is_right(ran: dict[str, Ran], level: str, kind: str) -> None:
    wrong = need(ran, level).wrong(KINDS[kind].ATTACKS)
    assert not wrong, f"{len(wrong)}: {wrong}"


@pytest.mark.parametrize("level", EVERYWHERE)
def test_the_next_honest_completion_is_unharmed(ran: dict[str, Ran], level: str) -> None:
    assert need(ran, level).harmed() == []


def test_nothing_outside_is_reached_or_leaks(ran: dict[str, Ran], outside: Outside) -> None:
    assert ran
    assert outside.state() == outside.before
    assert {level: one.leaks(outside.secret) for level, one in ran.items()} == {level: [] for level in ran}


@pytest.mark.parametrize("level", ["kernel", "bubblewrap"])
def test_the_kernel_lets_no_system_call_through_but_those_allowed(ran: dict[str, Ran], level: str) -> None:
    one = need(ran, level)
    place = 1 if os.uname().machine == "aarch64" else 0
    listed = [entry.split()[1 + place] for entry in kernel.ALLOWED.replace("\n", ",").split(",") if entry]
    allowed = {int(number) for number in listed if number != "-"} | {rule.numbers[place] for rule in kernel.RULES}
    for attack in processes.SWEEPS:
        (found,) = one.outputs[attack.name]
        assert isinstance(found, list), (attack.name, found)
        beyond = sorted(set(found) - allowed)
        assert not beyond, f"{attack.name}: {beyond}"
    most = set(one.outputs[processes.SWEEPS[1].name][0])
    assert len(most) > 40, sorted(most)  # or the sweep finds nothing

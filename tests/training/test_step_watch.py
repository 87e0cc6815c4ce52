"""A step that takes far longer than the others is named while it does."""

import threading
import time

from qrpo_jax.training.step_watch import StepWatch, place


def slow_part(said: list[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not said and time.monotonic() < end:
        time.sleep(0.01)


def test_a_slow_step_is_said_once_with_its_place() -> None:
    said: list[str] = []
    with StepWatch(said.append, least=0.2) as watch:
        for number in range(1, 6):
            watch.step(number)
        slow_part(said, 20.0)
        time.sleep(0.3)
        watch.step(6)
    assert len(said) == 1 and "step 6 has taken" in said[0], said
    assert "slow_part" in said[0] and "\n" not in said[0], said


def test_the_first_step_and_usual_ones_are_not_slow() -> None:
    said: list[str] = []
    with StepWatch(said.append, least=0.05) as watch:
        time.sleep(0.2)  # nothing has begun
        watch.step(1)
        time.sleep(0.2)  # no median yet
        for number in range(2, 5):
            watch.step(number)
            time.sleep(0.12)
    assert not said, said


def test_quantiles_of_the_time_between_steps() -> None:
    watch = StepWatch(print)
    watch.step(1)
    assert watch.lap() == {}
    for number in range(2, 7):
        time.sleep(0.01)
        watch.step(number)
    lap = watch.lap()
    assert 0.01 <= lap["step_seconds"] <= lap["step_seconds_95"], lap


def test_a_thread_that_has_ended_has_no_place() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.ident is not None and place(thread.ident) == "no line of Python"

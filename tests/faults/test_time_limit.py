"""Calls that take too long end, whatever they do; others never notice."""

import re
import signal
import threading
import time

import pytest

from qrpo_jax.faults.time_limit import SIGNAL, TimeLimit, TimeLimitError


def spin():
    while True:
        pass


def stubborn():
    """Goes on after every `Exception`."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


HANGING = {
    "a loop": spin,
    "a sleep": lambda: time.sleep(60),
    "a function that ignores errors": stubborn,
    "a lock": lambda: threading.Event().wait(60),
    "an expression of exponential time": lambda: re.fullmatch(r"(a+)+b", "a" * 64),
    "one long call after another": lambda: [time.sleep(0.05) for _ in range(1200)],
}


@pytest.mark.parametrize("what", HANGING)
def test_a_call_that_hangs_ends_soon_after_its_limit(what):
    begin = time.monotonic()
    ended = pytest.raises(TimeLimitError, match="no answer within 0.2 s")
    with TimeLimit() as limit, ended:
        limit.call(0.2, "a call", HANGING[what])
    took = time.monotonic() - begin
    assert 0.2 <= took < 5, took


def test_calls_within_their_limit_never_notice():
    with TimeLimit() as limit:
        for i in range(60):
            assert limit.call(0.5 if i else 0.3, "a call", lambda i=i: time.sleep(0.02) or i) == i
        time.sleep(0.3)  # between calls nothing is limited


def test_a_call_that_renews_its_time_goes_on():
    with TimeLimit() as limit:
        limit.call(0.5, "a call", lambda: [(time.sleep(0.05), limit.renew()) for _ in range(20)])


def test_calls_that_end_right_at_their_limit_leave_no_error_behind():
    """Whether each made it or not, none fails anywhere but inside its call."""
    ended, limited = 0, 0.003
    with TimeLimit() as limit:
        for i in range(700):
            begin = time.monotonic()

            def spin_until(end=begin + limited + (i % 7 - 3) * 2e-5):
                while time.monotonic() < end:
                    pass

            try:
                limit.call(limited, "a call", spin_until)
            except TimeLimitError:
                ended += 1
        time.sleep(1.2)
    assert 0 < ended < 700, ended


def test_the_signal_is_as_before_afterwards():
    before = signal.getsignal(SIGNAL)
    with TimeLimit() as limit:
        assert limit.call(9, "a call", lambda: signal.getsignal(SIGNAL)) != before
    assert signal.getsignal(SIGNAL) == before


def test_what_ignores_the_signal_ends_the_run_with_one_line():
    said, left = [], threading.Event()

    def catch_all():
        begin = time.monotonic()
        while not left.is_set() and time.monotonic() < begin + 30:
            try:
                time.sleep(1)
            except TimeLimitError:
                continue

    with TimeLimit(0.3, said.append, left.set) as limit:
        limit.call(0.1, "reward 'slow' called for row 'r'", catch_all)
    assert left.is_set() and len(said) == 1, said
    assert said[0].startswith("error: reward 'slow' called for row 'r' did not end 0.3 s after its limit of 0.1 s"), (
        said
    )


def test_calls_in_another_thread_have_no_limit():
    found = []

    def call():
        with TimeLimit() as limit:
            limit.call(0.05, "a call", lambda: time.sleep(0.3))
        found.append("done")

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == ["done"]

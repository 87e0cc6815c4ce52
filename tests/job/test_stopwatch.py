"""The stopwatch, on a clock that only the measured program moves."""

import itertools
from typing import Any

import pytest

from qrpo_jax.job import stopwatch
from qrpo_jax.job.stopwatch import Load, Program


class Clock:
    """A clock, a program that takes its time, and a record of what ran."""

    def __init__(self, host: float, device: float) -> None:
        self.now, self.ran = 0.0, []
        self._host, self._device = host, device

    def perf_counter(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float, result: Any = 1.0) -> Any:
        self.ran.append(name)
        self.now += seconds
        return result

    def loads(self) -> Any:
        for number in itertools.count():
            # Every second call has twice the work; what it costs is proportional.
            yield Load(
                self.takes("load", self._host / 2, 1 + number % 2), 30 * (1 + number % 2), 700.0 * (1 + number % 2)
            )

    def program(self) -> Program:
        return Program(
            compile=lambda: self.takes("compile", 11.0),
            loads=self.loads(),
            place=lambda work: self.takes("place", self._host / 2, work),
            call=lambda work: self.takes("call", self._device * work, float(work)),
        )


def measure(clock: Clock, monkeypatch: pytest.MonkeyPatch, product: Any = None, calls: int = 4) -> stopwatch.Timing:
    monkeypatch.setattr(stopwatch, "time", clock)
    return stopwatch.measure(clock.program(), rounds=3, calls=calls, product=product)


def test_speed_counts_the_hosts_work_and_the_devices_speed_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = measure(Clock(host=0.5, device=2.0), monkeypatch)
    # Four calls: 2 and 4 seconds of the device in turn, and half a second of the host each.
    assert timing.seconds == pytest.approx(3.5)
    assert timing.compile_seconds == pytest.approx(11.0)
    assert timing.tokens == pytest.approx(45) and timing.flops == pytest.approx(1050)
    assert timing.tokens_per_second == pytest.approx(45 / 3.5)
    assert timing.flops_per_second == pytest.approx(1050 / 3.5)
    assert timing.device_flops_per_second == pytest.approx(700 / 2.0)
    assert timing.host_share == pytest.approx(0.5 / 3.5)


def test_a_loop_that_hides_the_hosts_work_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure(Clock(host=0.0, device=2.0), monkeypatch).host_share == 0


def test_products_take_turns_with_the_calls_and_their_median_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, speeds = Clock(host=0.5, device=2.0), iter([90.0, 10.0, 20.0])
    timing = measure(clock, monkeypatch, product=lambda: clock.takes("product", 5.0, next(speeds)), calls=2)
    assert timing.peak_flops == 20
    ran = [name for name in clock.ran if name in ("product", "call")]
    assert ran == ["call", *["product", "call", "call", "call"] * 3], ran
    # Products take none of the measured time.
    assert timing.tokens_per_second == pytest.approx(45 / 3.5)

"""What statuses and headers of servers mean, and how long requests wait."""

import email.utils
import time

import pytest

from qrpo_jax.servers.failures import FIRST_WAIT, LONGEST_ORDERED, LONGEST_WAIT, backoff, of_status, ordered_wait


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 501, 502, 503, 504, 529])
def test_statuses_of_the_moment_are_tried_again(status):
    assert of_status(status, b"", {}).again


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 413, 422])
def test_refusals_are_not_tried_again(status):
    failure = of_status(status, b'{"detail": "no"}', {"retry-after": "9"})
    assert not failure.again and failure.wait == 0 and failure.words == f"answered with status {status}, no"


def test_a_server_that_orders_a_wait_gets_it_in_seconds_or_until_a_date():
    date = email.utils.formatdate(time.time() + 50, usegmt=True)
    assert 45 < ordered_wait(date) <= 50
    assert ordered_wait(email.utils.formatdate(time.time() - 50, usegmt=True)) == 0
    assert of_status(429, b"", {"retry-after": "7"}).wait == 7
    for odd in ("-5", "inf", "", "1e400", "tomorrow", "\x00"):
        assert 0 <= ordered_wait(odd) <= LONGEST_ORDERED, odd


def test_waits_double_up_to_the_longest_and_differ_between_requests():
    for failures in range(1, 12):
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1))
        waits = {backoff(failures) for _ in range(200)}
        assert len(waits) > 100 and longest / 2 <= min(waits) <= max(waits) <= longest, (failures, waits)

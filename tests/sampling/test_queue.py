"""Laws of the queue: every completion is decoded once, by one slot, and no slot waits that has something to do."""

import numpy as np
import pytest

from qrpo_jax.sampling.queue import advance_queue, arrange, start_queue


@pytest.mark.parametrize(
    ("devices", "prompts", "completions", "slots"),
    [(1, 7, 5, 3), (2, 5, 11, 4), (1, 3, 17, 64), (3, 1, 2, 1), (1, 13, 1, 5), (2, 7, 8, 0), (1, 2, 50, 6)],
)
def test_every_completion_is_decoded_once(devices: int, prompts: int, completions: int, slots: int) -> None:
    groups, each = arrange(slots, prompts, completions)
    assert slots == 0 or groups * each <= max(slots, 1), (groups, each)
    queue = start_queue(devices, groups, each)
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 9, (devices, prompts, completions))
    left = np.zeros((devices, groups, each), int)
    seen = np.zeros((devices, prompts, completions), int)
    begun = np.ones((devices, groups, each), bool)
    for step in range(10_000):
        place = np.asarray(queue.completion_DxQxm)
        prompt = np.broadcast_to(np.asarray(queue.prompt_DxQ)[..., None], place.shape)
        active = place < completions
        if not active.any():
            break
        for at in np.argwhere(begun & active):
            d, q, m = at
            seen[d, prompt[d, q, m], place[d, q, m]] += 1
            left[d, q, m] = lengths[d, prompt[d, q, m], place[d, q, m]]
        left -= 1
        ended = active & (left == 0)
        before = np.asarray(queue.waiting_D)
        queue, began = advance_queue(queue, ended, prompts, completions)
        assert (queue.waiting_D - before <= 1).all(), "one prompt of a device is copied in a step"
        begun = np.asarray(began)
        now = np.asarray(queue.completion_DxQxm)
        for d in range(devices):
            # A group with an idle slot has no completion of its prompt left to begin.
            for q in range(groups):
                if (now[d, q] == completions).any() and int(queue.prompt_DxQ[d, q]) < prompts:
                    assert int(queue.started_DxQ[d, q]) >= completions, (step, d, q, now[d, q])
            # A group without work means that no prompt waits, or that another group has taken one in this step.
            if (now[d] == completions).all(-1).any():
                assert int(queue.waiting_D[d]) >= prompts or queue.waiting_D[d] > before[d], (step, d)
    assert (seen == 1).all(), seen


def test_slots_are_as_many_as_are_there_and_as_were_asked_for() -> None:
    for slots in range(40):
        for prompts in (1, 2, 3, 7, 19):
            for completions in (1, 2, 7, 50):
                groups, each = arrange(slots, prompts, completions)
                assert 1 <= groups <= prompts and 1 <= each <= completions, (slots, prompts, completions)
                if 0 < slots < prompts * completions and slots >= prompts:
                    assert groups * each > slots / 2, (slots, prompts, completions, groups, each)

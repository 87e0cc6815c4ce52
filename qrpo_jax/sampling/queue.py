"""Which completion each slot of the sampler decodes: slots that have ended take the next completion that waits."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Queue(NamedTuple):
    """Q groups of m slots on each of D devices. A group decodes completions of one prompt; idle slots have index n.

    Attributes:
      prompt_DxQ: the prompt of each group, among the P of its device; P if it has none.
      started_DxQ: completions of that prompt that have been started.
      completion_DxQxm: what each slot decodes, 0 to n - 1; n: nothing.
      waiting_D: the first prompt that no group has taken.
    """

    prompt_DxQ: Array
    started_DxQ: Array
    completion_DxQxm: Array
    waiting_D: Array


def arrange(slots: int, prompts: int, completions: int) -> tuple[int, int]:
    """Q groups of m slots: of `slots` in all at most, or one for each completion if that is 0 or enough.

    Slots of a group read their prompt's keys and values once for all, so more of them read less. But a group takes its
    next prompt when its last slot has ended, so fewer of them wait less. Between an eighth and a half of the n
    completions, or more if there are few prompts, those are chosen with which all is done in the fewest turns: groups
    that have no prompt while others decode their last are idle, too.

    >>> arrange(64, 100, 8), arrange(64, 100, 50), arrange(64, 2, 50), arrange(64, 4, 8), arrange(114, 64, 8)
    ((16, 4), (6, 10), (2, 25), (4, 8), (38, 3))
    """
    if slots == 0 or prompts * completions <= slots:
        return prompts, completions
    least = max(1, min(completions // 8, slots))
    most = max(least, completions // 2, slots // prompts)
    found = [(min(prompts, slots // each), each) for each in range(least, min(most, completions, slots) + 1)]
    return min(found, key=lambda pair: (-(-prompts // pair[0]) * -(-completions // pair[1]), pair[1]))


def start_queue(devices: int, groups: int, slots: int) -> Queue:
    """The first `groups` prompts of each device, with `slots` completions each."""
    return Queue(
        jnp.broadcast_to(jnp.arange(groups), (devices, groups)),
        jnp.full((devices, groups), slots),
        jnp.broadcast_to(jnp.arange(slots), (devices, groups, slots)),
        jnp.full((devices,), groups),
    )


def advance_queue(queue: Queue, ended_DxQxm: Array, prompts: int, completions: int) -> tuple[Queue, Array]:
    """The queue after some slots have ended, and which slots have begun a completion, [D, Q, m].

    Args:
      ended_DxQxm: slots whose completion has ended with this step.
      prompts, completions: P of each device, and n of each prompt.
    """
    idle = ended_DxQxm | (queue.completion_DxQxm == completions)
    # A group whose prompt has no completion left takes another prompt, once all its slots are idle. One group of a
    # device does so in a step, because the keys and values of its prompt have to be copied.
    free_DxQ = idle.all(-1) & (queue.started_DxQ >= completions)
    taken_DxQ = free_DxQ & (jnp.cumsum(free_DxQ, -1) == 1) & (queue.waiting_D < prompts)[:, None]
    prompt_DxQ = jnp.where(taken_DxQ, queue.waiting_D[:, None], jnp.where(free_DxQ, prompts, queue.prompt_DxQ))
    started_DxQ = jnp.where(taken_DxQ, 0, queue.started_DxQ)
    offered = started_DxQ[..., None] + jnp.cumsum(idle, -1) - 1
    begun = idle & (offered < completions) & (prompt_DxQ < prompts)[..., None]
    completion = jnp.where(begun, offered, jnp.where(idle, completions, queue.completion_DxQxm))
    started_DxQ = started_DxQ + begun.sum(-1)
    return Queue(prompt_DxQ, started_DxQ, completion, queue.waiting_D + taken_DxQ.sum(-1)), begun

"""A batch on device: B packed rows of L tokens that hold up to S completions each."""

from typing import Any, NamedTuple

from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.model.layout import Layout

Array = Any  # on the host NumPy, perhaps of some of the rows; jax on the mesh, of all of them


class Batch(NamedTuple):
    """Packed completions with the numbers their objectives need.

    The completion in slot s of a row has segment s + 1; see `Layout` for how it stands with its prompt. The two
    completions of a pair occupy slots 2k (higher reward) and 2k + 1 of the same row.
    A loader or an on-policy sampler may fill it: a batch does not record where its completions came from.
    """

    tokens_BxL: Array  # int32, what the model reads; 0 in padding
    layout: Layout  # int32 [B, L] each
    targets_BxL: Array  # int32, the completion's token to predict from this position; -1 where there is none
    present_BxS: Array  # bool, slots in use
    example_BxS: Array  # int32, index in the loader's table, -1 for an empty slot
    completions_BxS: PerCompletion
    per_token_BxL: PerToken | None = None  # of completions that the policy sampled itself; None of stored ones

    def with_numbers(self, **changes: Array) -> "Batch":
        """The batch with other values for fields of `PerCompletion`, [B, S] each."""
        return self._replace(completions_BxS=self.completions_BxS._replace(**changes))

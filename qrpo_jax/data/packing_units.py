"""What there is to pack: units of one or two completions, and their lengths."""

import dataclasses
import functools

import numpy as np

from qrpo_jax.data.ragged import starts


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """What there is to pack: U units, each a completion or a pair of one prompt, of C completions.

    Unit after unit holds one completion after the other. A row holds a prompt without its last token once for each
    group, and for each completion as many tokens as it has: the prompt's last token and all of its own but the last
    (see `model.layout`).

    Attributes:
      sizes_U: int, completions of each unit.
      prompts_C: int, from 0 on; completions of one number have the same prompt.
      shared_C: int, tokens of a completion's prompt without the last.
      length_C: int, tokens of a completion.
    """

    sizes_U: np.ndarray
    prompts_C: np.ndarray
    shared_C: np.ndarray
    length_C: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes_U)

    @functools.cached_property
    def first_U1(self) -> np.ndarray:
        """Unit u has the completions first_U1[u] to first_U1[u + 1] - 1, int64 [U + 1]."""
        return starts(self.sizes_U)

    @property
    def first_U(self) -> np.ndarray:
        """The first completion of each unit."""
        return self.first_U1[:-1]

    @functools.cached_property
    def own_U(self) -> np.ndarray:
        """Tokens of each unit's completions together."""
        return np.diff(starts(self.length_C)[self.first_U1])

    def tokens_U(self, share: bool) -> np.ndarray:
        """Tokens of a row that each unit takes if it is alone in it."""
        return self.own_U + self.shared_C[self.first_U] * (1 if share else self.sizes_U)

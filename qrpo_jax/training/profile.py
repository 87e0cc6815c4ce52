"""A profile of some steps, for xprof or TensorBoard's profile page."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from qrpo_jax.errors import UserError
from qrpo_jax.files import grown, hand_over

FOLDER = "profile"  # in the stage's folder


class Profile(NamedTuple):
    """Steps to profile, and where to.

    Attributes:
      first: number of the first step; 0 for none.
      steps: how many.
      folder: that the profile is written into.
      local: where it grows, see `files.grown`.
    """

    first: int = 0
    steps: int = 0
    folder: Path = Path()
    local: Path = Path()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Runs a step; those of the profile are recorded, and the last one is waited for."""
        if self.steps and number == self.first:
            jax.profiler.start_trace(str(self.local))
        try:
            yield
        finally:
            if self.steps and number == self.first + self.steps - 1:
                for device in jax.local_devices():  # what is computed last on each device comes after the step
                    (jax.device_put(0.0, device) + 1.0).block_until_ready()
                with contextlib.suppress(RuntimeError):  # the run began in the middle of these steps
                    jax.profiler.stop_trace()
                    hand_over(self.local, self.folder)


NO_PROFILE = Profile()


def parse_profile(text: str, folder: Path) -> Profile:
    """The profile that a text "STEP:COUNT" asks for; of no steps if it is empty.

    Raises:
      UserError: the text has another form.

    >>> parse_profile("20:3", Path("train"))[:2]
    (20, 3)
    """
    if not text:
        return NO_PROFILE
    found = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,3})", text)
    if found is None:
        raise UserError(f"profile is {text!r}; allowed: STEP:COUNT, such as 20:3, or nothing", about="profile")
    return Profile(int(found[1]), int(found[2]), folder / FOLDER, grown(folder / FOLDER))

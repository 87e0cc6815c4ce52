"""The policies that stage `evaluate` compares: reference and trained policy with kept steps of it, or model folders."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.compare import POLICY, REFERENCE
from qrpo_jax.job import shared_checks
from qrpo_jax.job.completions import check_sampling
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import steps_to_evaluate, train_steps
from qrpo_jax.model.decoder import Parameters

AGAINST = "evaluate.against"


class Policy(NamedTuple):
    """A policy that answers held-out prompts.

    Attributes:
      name: of its folder: "reference", "policy", or "step-40" for the policy after 40 updates.
      side: "reference" or "policy".
      job: has its shape and its tokenizer.
      load: returns its parameters on the job's `unit_mesh`, from those of the model that the job starts from.
      step: number of updates, for a point of the curve.
    """

    name: str
    side: str
    job: Job
    load: Callable[[Parameters], Parameters]
    step: int | None = None


def open_policies(job: Job) -> list[Policy]:
    """The policies in the order in which they answer; the reference is first, if there is one."""
    if "train" not in job.config.stages:
        alone = Policy(POLICY, POLICY, job, lambda base: base)
        other = job_against(job)
        if other is None:
            return [alone]
        return [Policy(REFERENCE, REFERENCE, other, lambda base: other.unit_reference()), alone]
    reference = Policy(REFERENCE, REFERENCE, job, lambda base: base)
    trained = Policy(POLICY, POLICY, job, job.unit_policy)
    return [reference, trained, *kept_policies(job)]


def kept_policies(job: Job) -> list[Policy]:
    """The policy after the steps that `evaluate.checkpoints` asks for, without the first and the last.

    Raises:
      UserError: a step is not kept.
    """

    def after(step: int) -> Policy:
        def load(base: Parameters) -> Parameters:
            return job.unit_policy(base, step)

        return Policy(f"step-{step}", POLICY, job, load, step)

    return [after(step) for step in steps_to_evaluate(job) if step not in (0, train_steps(job))]


def job_against(job: Job) -> Job | None:
    """The job as it would be with the model of `evaluate.against` for its own; None without one."""
    against = job.config.evaluate.against
    if not against:
        return None
    config = ConfigDict(job.config.to_dict())
    config.model.path = against
    return Job(FrozenConfigDict(config), job.workdir, job.shard, job.stages)


def check_policies(job: Job) -> None:
    """Refuses a model to compare with that cannot be read, or that has no place in the run.

    Raises:
      UserError: naming the key.
    """
    if not job.config.evaluate.against:
        return
    if "train" in job.config.stages:
        raise UserError(
            f"evaluate.against is for model folders: a run with stage 'train' compares its policy with its reference; "
            f"unset config.{AGAINST}, or leave 'train' out of config.stages"
        )
    other = job_against(job)
    assert other is not None
    try:
        shared_checks.check_model(other)
        shared_checks.check_packing(other)
        check_sampling(other, "evaluate")
    except UserError as error:
        error.message, error.keys = f"evaluate.against: {error.message}", (AGAINST,)
        raise


def same_tokens(policy: Policy, other: Policy) -> bool:
    """Whether the tokens of one are those of the other, so that log-probs of the same tokens can be compared."""
    if policy.job is other.job:
        return True
    first, second = policy.job.text, other.job.text
    vocabularies = [text.tokenizer.get_vocab() for text in (first, second)]
    sizes = [one.job.shape.settings.vocab_size for one in (policy, other)]
    same = vocabularies[0] == vocabularies[1] and first.chat_template == second.chat_template
    return same and first.end_tokens == second.end_tokens and sizes[0] == sizes[1]

"""Tasks that are sampled and graded here: code by its tests, GSM8K by its number, AlpacaEval for its own judge."""

import json
from typing import Any

import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.evaluation.passes import passed
from qrpo_jax.evaluation.side_figures import Figures, own_figures, pass_figures, prompt_means
from qrpo_jax.harnesses import alpaca_eval, extraction
from qrpo_jax.harnesses.presets import TESTS
from qrpo_jax.harnesses.record import digest, figures_record, task_record
from qrpo_jax.harnesses.task_job import ANSWERS, Asked, TaskJob
from qrpo_jax.harnesses.tasks import ALPACA_EVAL, GSM8K
from qrpo_jax.job import memory, shared_checks, summary, verdicts
from qrpo_jax.job.answering import Answered, answer
from qrpo_jax.job.completions import check_sampling
from qrpo_jax.job.held_out import folder_of, rows_by_seed
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.policies import check_policies, open_policies
from qrpo_jax.job.prompts import Prompts, open_listed
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.unit_size import unit_size
from qrpo_jax.model.decoder import Parameters

SHOWN = ("temperature", "completions", "max_new_tokens", "top_k", "top_p", "min_p")


def check(job: TaskJob) -> None:
    """Refuses a task whose problems cannot be read, asked or graded.

    Raises:
      UserError: naming what is wrong.
    """
    section = job.config.evaluate
    if section.temperature == 0 and section.completions > 1:
        raise UserError(
            f"completions={section.completions} at temperature 0 are all alike: set a temperature, or one completion",
            about="tasks",
        )
    shared_checks.check_model(job)
    check_sampling(job, ANSWERS)
    check_policies(job)
    if job.finished:
        return
    problems = asked(job)
    most, text = job.config.prompts.max_tokens, job.text
    lengths = [len(text.prompt(row.messages, f"row {row.id!r}")) for row in problems.rows(range(problems.count))]
    too_long = sum(length > most for length in lengths)
    if too_long == len(lengths):
        raise refuse(
            "harness.max_prompt_tokens", f"{most}; all prompts are longer, the shortest has {min(lengths)} tokens"
        )
    if too_long:
        job.note(
            f"harness {job.task.name}: WARNING: {too_long} of {len(lengths)} prompts are longer than {most} tokens and "
            "count as failed (config.harness.max_prompt_tokens)"
        )
    for dropped in open_listed(job, "train").dropped:
        job.note(f"harness {job.task.name}: WARNING: {dropped.line()}")
    check_reward(job)
    memory.check(job)
    if job.task.kind == ALPACA_EVAL:
        alpaca_eval.check(job)


def asked(job: TaskJob) -> Asked:
    """The problems of a task, as they are asked."""
    return Asked(open_listed(job, "train"), job.task, chat=job.config.model.template == "chat")


def run(job: TaskJob, base: Parameters) -> dict[str, Any] | None:
    """The entry of the task in results.json; None while other shards have units to write.

    Args:
      base: parameters of the model that the run starts from, on the job's `unit_mesh`.
    """
    problems, policies = asked(job), open_policies(job)
    title = f"harness {job.task.name}"
    prompts = Prompts(problems, unit_size(job, job.folder(ANSWERS), problems.count))
    found = answer(job, prompts, policies, base, title=title, kl=False)
    if found is None:
        return None
    rows = problems.rows(range(problems.count))
    sides = {}
    for policy in policies:
        counts = found.counts[policy.name]
        summary.close(
            job,
            f"{title}, {policy.name}",
            folder_of(job, policy.name, 0),
            units=prompts.units,
            rows_in=len(rows),
            counts=counts,
            measure=SAMPLED,
        )
        verdicts.say(job, f"{title}, {policy.name}", counts, found.first_lines[policy.name])
        sides[policy.name] = side_record(job, policy.name, rows, found)
    record = task_record(job.task.kind, sides, settings(job), asked_digest(rows))
    if job.task.kind != ALPACA_EVAL and len(sides) == len(SIDES):
        of_sides = [prompt_means(passes(graded(job, rows, found.policies[side][0]))) for side in SIDES]
        record["gain"] = figures_record({"pass_at_1": mean_with_interval(of_sides[1] - of_sides[0])})
    if dropped := open_listed(job, "train").counts:
        record["counts"] = dropped
    return record


def side_record(job: TaskJob, side: str, rows: list[Row], found: Answered) -> dict[str, Any]:
    """Figures of one side, of all problems that were asked."""
    answered = found.policies[side][0]
    of_answers = own_figures(list(answered.values()))
    figures: Figures = {name: of_answers[name] for name in ("mean_tokens", "share_finished")}
    were_asked = found.counts[side]["prompts"]
    record: dict[str, Any] = {"prompts": len(rows), "not_asked": len(rows) - were_asked}
    record["without_reward"] = were_asked - len(answered)
    if job.task.kind == ALPACA_EVAL:
        judged = alpaca_eval.judge(job, side, rows)
        return record | {"figures": figures_record(judged.figures | figures), "judged": judged.how}
    passed_at = pass_figures(graded(job, rows, answered))
    figures = {name: one for name, one in passed_at.items() if name != "pass_rate"} | figures
    if job.task.kind == GSM8K:
        figures |= extracted(rows, {row.id: row for row in rows_by_seed(job, side)[0]})
    return record | {"figures": figures_record(figures)}


def graded(job: TaskJob, rows: list[Row], answered: dict[str, Answers]) -> list[Answers]:
    """The answers to all problems; those that were not asked, or have no reward, have failed."""
    nothing = np.zeros(job.config.evaluate.completions)
    failed = Answers(nothing, nothing.astype(np.int32), nothing.astype(bool), graded_S=nothing)
    return [answered.get(row.id, failed) for row in rows]


def passes(answers: list[Answers]) -> list[Answers]:
    """Answers whose reward is 1 where they passed and 0 elsewhere."""
    return [one._replace(reward_S=passed(one.reward_S).astype(float)) for one in answers]


def extracted(rows: list[Row], answered: dict[str, Row]) -> Figures:
    """The share of right answers to GSM8K by the two rules of lm-evaluation-harness."""
    figures = {}
    for name, extract in (("strict_match", extraction.strict), ("flexible_extract", extraction.flexible)):
        right_P = []
        for row in rows:
            wanted = extraction.bare(json.loads(row.payload)["answer"])
            texts = [c.text for c in answered[row.id].completions] if row.id in answered else []
            right_P.append(float(np.mean([extract(text) == wanted for text in texts])) if texts else 0.0)
        figures[name] = mean_with_interval(np.asarray(right_P))
    return figures


def settings(job: TaskJob) -> dict[str, Any]:
    """What the figures depend on, besides the model."""
    config = job.config
    found = {name: config.evaluate[name] for name in SHOWN}
    found |= {"source": config.prompts.source, "split": config.prompts.split, "seed": config.seed}
    found |= {"template": config.model.template, "max_prompt_tokens": config.prompts.max_tokens}
    if job.task.kind == GSM8K:
        found |= {"shots": int(job.task.options.get("shots", 0)), "stop": list(config.evaluate.stop)}
    if config.reward.name == TESTS:
        found |= {name: config.reward[name] for name in ("block", "cpu_seconds", "memory_mb", "isolation")}
    return found


def asked_digest(rows: list[Row]) -> str:
    """The digest of the problems with their words and their tests."""
    return digest([row.id, [[m.role, m.content] for m in row.messages], row.payload] for row in rows)

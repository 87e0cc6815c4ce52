"""Tasks of lm-evaluation-harness (the package lm_eval, extra `eval`), answered by our decoder and sampler."""

import importlib.util
import math
from importlib.metadata import version
from typing import Any

import numpy as np

from qrpo_jax.errors import UserError, reason
from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.evaluation.side_figures import Figures
from qrpo_jax.harnesses.record import digest, figures_record, task_record, with_error
from qrpo_jax.harnesses.requests import WaitingError
from qrpo_jax.harnesses.task_job import ANSWERS, TaskJob
from qrpo_jax.job import memory, shared_checks
from qrpo_jax.job.policies import check_policies, open_policies
from qrpo_jax.model.decoder import Parameters

PACKAGE = "lm_eval"
RESAMPLES = 1000  # for standard errors of figures that are no means


def check(job: TaskJob) -> None:
    """Refuses tasks that lm_eval does not know, and chat without a template.

    Raises:
      UserError: naming what is wrong.
    """
    shared_checks.check_model(job)
    check_policies(job)
    memory.check(job)
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("lm_eval is not installed: pip install -e '.[eval]', or leave the task out", about="tasks")
    if job.task.options.get("template") == "chat" and not job.text.tokenizer.chat_template:
        raise UserError("template=chat, and the tokenizer has no chat template", about="tasks")
    known = manager(job)
    for name in job.task.inside:
        if not known.match_tasks([name]):
            raise UserError(
                f"lm_eval knows no task {name!r}; `lm_eval ls tasks` lists them, and include=FOLDER adds your own",
                about="tasks",
            )


def manager(job: TaskJob) -> Any:
    """The tasks that lm_eval knows, with those of the folder that the user includes."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=job.task.options.get("include"))


def run(job: TaskJob, base: Parameters) -> dict[str, Any] | None:
    """The entry of the tasks in results.json; None while other shards have requests to answer."""
    from qrpo_jax.harnesses.policy_lm import PolicyLM

    sides, asked, waits = dict[str, Any](), list[str](), False
    for policy in open_policies(job):
        title = f"harness {job.task.name} {policy.name}"
        model = PolicyLM(policy, policy.load(base), job.folder(ANSWERS) / policy.name, title)
        try:
            results = evaluate(job, model)
        except WaitingError:
            waits = True
            continue
        figures, prompts = read_results(results)
        sides[policy.name] = {
            "prompts": sum(results["n-samples"][name]["effective"] for name in results["n-samples"]),
            "prompts_of": prompts,
            "contexts_cut": model.cut,
            "figures": figures_record(figures),
        }
        asked = model.asked
        if model.cut:
            job.say(f"{title}: WARNING: {model.cut} contexts were too long for the model and cut on the left")
    if waits:
        return None
    record = task_record(PACKAGE, sides, settings(job, results), digest(asked))
    record["versions"] |= {PACKAGE: version(PACKAGE)} | {f"task {k}": v for k, v in results["versions"].items()}
    return record


def evaluate(job: TaskJob, model: Any) -> dict[str, Any]:
    """What lm_eval finds, with the metrics of each document.

    Raises:
      UserError: about `tasks`: a task cannot be loaded.
    """
    import lm_eval

    options = job.task.options
    known = manager(job)
    try:
        known.load(list(job.task.inside))
    except Exception as error:  # of lm_eval, of the library datasets, of the network
        raise UserError(f"lm_eval cannot load {', '.join(job.task.inside)}: {reason(error)}", about="tasks") from None
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(job.task.inside),
        num_fewshot=options.get("shots"),
        limit=options.get("prompts", job.config.harness.prompts) or None,
        bootstrap_iters=RESAMPLES,
        apply_chat_template=options.get("template") == "chat",
        task_manager=known,
    )


def read_results(results: dict[str, Any]) -> tuple[Figures, dict[str, int]]:
    """Figures by "TASK METRIC", and how many documents each is of.

    A figure that is the mean over documents has the interval of its documents; others have that of lm_eval's standard
    error, and none where there is none.
    """
    figures: Figures = {}
    prompts: dict[str, int] = {}
    for task, found in results["results"].items():
        for name, value in found.items():
            metric, comma, chosen = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = f"{task} {metric}" + ("" if chosen == "none" else f" {chosen}")
            error = found.get(f"{metric}_stderr,{chosen}")
            values_P = np.asarray(of_documents(results["samples"].get(task, ()), metric, chosen))
            if len(values_P) > 1 and math.isclose(values_P.mean(), value, rel_tol=1e-9, abs_tol=1e-12):
                figures[label] = mean_with_interval(values_P)
            elif isinstance(error, int | float):
                figures[label] = with_error(float(value), float(error))
            else:
                figures[label] = float(value), [math.nan, math.nan]
            if task in results["n-samples"]:
                prompts[label] = results["n-samples"][task]["effective"]
    return figures, prompts


def of_documents(samples: Any, metric: str, chosen: str) -> list[float]:
    """The values of a metric document by document; none where these are no numbers."""
    values = [one[metric] for one in samples if one.get("filter", "none") == chosen and metric in one]
    return [float(value) for value in values] if all(isinstance(value, int | float) for value in values) else []


def settings(job: TaskJob, results: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on, besides the model."""
    options = job.task.options
    return {
        "tasks": list(job.task.inside),
        "shots": results["n-shot"],
        "template": options.get("template", "plain"),
        "limit": options.get("prompts", job.config.harness.prompts),
        "seed": job.config.seed,
    }

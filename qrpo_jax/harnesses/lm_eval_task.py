"""Tasks of lm-evaluation-harness (the package lm_eval, extra `eval`), answered by our decoder and sampler."""

import functools
import importlib.util
import math
from importlib.metadata import version
from typing import Any

import numpy as np

from qrpo_jax.errors import UserError, reason
from qrpo_jax.evaluation.intervals import bootstrap
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
    """Refuses tasks that lm_eval does not know or cannot load, and chat without a template.

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
    known = manager(job.task.options.get("include"))
    for name in job.task.inside:
        if not known.match_tasks([name]):
            raise UserError(
                f"lm_eval knows no task {name!r}; `lm_eval ls tasks` lists them, and include=FOLDER adds your own",
                about="tasks",
            )
    if not job.finished:
        check_loaded(job, known)


@functools.lru_cache(maxsize=4)
def manager(include: str | None) -> Any:
    """The tasks that lm_eval knows, which it reads in seconds, with those of the folder that the user includes."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


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
            job.say(f"{title}: WARNING: {model.cut} contexts were too long and cut on the left")
    if waits:
        return None
    record = task_record(PACKAGE, sides, settings(job, results), digest(asked))
    record["versions"] |= {PACKAGE: version(PACKAGE)} | {f"task {k}": v for k, v in results["versions"].items()}
    return record


def check_loaded(job: TaskJob, known: Any) -> None:
    """Loads the tasks with their data, and refuses those that would run code here, or that are no text.

    Raises:
      UserError: about `tasks`.
    """
    try:
        loaded = known.load(list(job.task.inside))["tasks"]
    except Exception as error:  # of lm_eval, of the library datasets, of the network
        raise UserError(f"lm_eval cannot load {', '.join(job.task.inside)}: {reason(error)}", about="tasks") from None
    for name, task in loaded.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"task {name!r} of lm_eval runs code that a model wrote, without a sandbox; take this program's "
                "humaneval, mbpp or leetcode",
                about="tasks",
            )
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"task {name!r} of lm_eval has images or sound; tasks of text are allowed", about="tasks")


def evaluate(job: TaskJob, model: Any) -> dict[str, Any]:
    """What lm_eval finds, with the metrics of each document."""
    import lm_eval

    options = job.task.options
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(job.task.inside),
        num_fewshot=options.get("shots"),
        limit=options.get("prompts", job.config.harness.prompts) or None,
        bootstrap_iters=RESAMPLES,
        apply_chat_template=options.get("template") == "chat",
        task_manager=manager(options.get("include")),
    )


def read_results(results: dict[str, Any]) -> tuple[Figures, dict[str, int]]:
    """Figures by "TASK METRIC", and how many documents each is of."""
    figures: Figures = {}
    prompts: dict[str, int] = {}
    for task, found in results["results"].items():
        for name, value in found.items():
            metric, comma, chosen = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = f"{task} {metric}" + ("" if chosen == "none" else f" {chosen}")
            documents = of_documents(results["samples"].get(task, ()), metric, chosen)
            figures[label] = with_interval(float(value), found.get(f"{metric}_stderr,{chosen}"), metric, documents)
            if task in results["n-samples"]:
                prompts[label] = results["n-samples"][task]["effective"]
    return figures, prompts


def with_interval(value: float, error: Any, metric: str, documents: np.ndarray) -> tuple[float, list[float]]:
    """A figure with the interval of its documents, if it is the mean over them or one of RATIOS.

    Others have that of lm_eval's standard error; both ends are NaN where there is none.

    Args:
      error: what lm_eval has for a standard error.
      documents: the values of each, [P], or pairs of a sum and what it is a share of, [P, 2].
    """
    statistic = RATIOS.get(metric, mean_of_sums)
    columns = documents.T if documents.ndim == 2 else (documents, np.ones(len(documents)))
    if len(documents) > 1 and documents.ndim == (2 if metric in RATIOS else 1):
        figure, interval = bootstrap(statistic, *columns)
        if math.isclose(figure, value, rel_tol=1e-9, abs_tol=1e-12):
            return value, interval
    if isinstance(error, int | float) and math.isfinite(error):
        return with_error(value, float(error))
    return value, [math.nan, math.nan]


def mean_of_sums(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1]


# Metrics of log-likelihoods of whole texts, from the sums of log-likelihoods and of words or bytes.
RATIOS = {
    "word_perplexity": lambda sums: np.exp(-sums[0] / sums[1]),
    "byte_perplexity": lambda sums: np.exp(-sums[0] / sums[1]),
    "bits_per_byte": lambda sums: -sums[0] / sums[1] / math.log(2),
}


def of_documents(samples: Any, metric: str, chosen: str) -> np.ndarray:
    """The values of a metric document by document; none where these are no numbers."""
    values = [one[metric] for one in samples if one.get("filter", "none") == chosen and metric in one]
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        return np.zeros(0)


def settings(job: TaskJob, results: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on, besides the model."""
    options = job.task.options
    return {
        "tasks": list(job.task.inside),
        "shots": results["n-shot"],
        "template": options.get("template", "plain"),
        "limit": options.get("prompts", job.config.harness.prompts),
        "max_prompt_tokens": job.config.harness.max_prompt_tokens,
        "seed": job.config.seed,
    }

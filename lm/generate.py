"""What does the model write after a prompt?

Prefill and one-token decoding with a key/value cache, both jitted; the same tokens come out without the cache.

    python -m lm.generate --workdir=runs/finetune --prompt="To be" --max_new_tokens=200 --temperature=0.8 --top_k=50 --seed=0
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ConfigError, UserError
from lm.model.transformer import Model
from lm.params import Params
from lm.sampling import Sampling, check_sampling, pick

DEFAULT = Sampling()


def read_prompts(
    model: Model, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, length: int
) -> tuple[jax.Array, Any]:
    """Reads left-padded prompts; returns the logits [B, V] of what follows them, and a cache of `length` slots."""
    positions_BT = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    cache = model.init_cache(tokens_BT.shape[0], length)
    x_BTD, cache = model.hidden(params, tokens_BT, positions_BT, segments_BT, cache=cache)
    return model.unembed(params[model.head_path], x_BTD[:, -1:])[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model", "length"))
def prefill(
    model: Model, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, keys_B: jax.Array, *,
    sampling: Sampling, length: int,
) -> tuple[jax.Array, Any, jax.Array]:  # fmt: skip
    """Reads left-padded prompts (segment 0 is padding); returns first new ids [B], a cache of `length` slots, seen [B, V]."""
    logits_BV, cache = read_prompts(model, params, tokens_BT, segments_BT, length)
    rows = jnp.arange(tokens_BT.shape[0])[:, None]
    seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows, tokens_BT].max(segments_BT > 0)
    return pick(logits_BV, seen_BV, keys_B, sampling), cache, seen_BV


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache", "seen_BV"))
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
    model: Model, params: Params, prompts: Sequence[Sequence[int]], *, max_new_tokens: int,
    stop_ids: Collection[int] = (), sampling: Sampling = DEFAULT, seed: int = 0, on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continues every prompt by up to `max_new_tokens` ids, stopping each at any of `stop_ids`, which is not returned.

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
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
    fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))

    def read(rows: Sequence[Sequence[int]], number: int) -> tuple[jax.Array, Any, jax.Array]:
        width = max(32, 1 << (max(map(len, rows)) - 1).bit_length())  # few shapes, few compilations
        tokens, segments = np.zeros((2, len(rows), width), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, width - len(ids) :] = ids
            segments[row, width - len(ids) :] = 1
        length = -(-(width + max_new_tokens - number) // 64) * 64
        return prefill(model, params, tokens, segments, fold(row_keys, number), sampling=sampling, length=length)

    ids, cache, seen = read(prompts, 0)
    scaling = model.config.rope_scaling
    turns_at = (
        scaling.original_len if scaling.kind == "longrope" else -1
    )  # from there on all keys are rotated otherwise
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    texts: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for number in range(max_new_tokens):
        current = np.asarray(ids)
        for row in sorted(open_rows):
            token = int(current[row])
            if token in stop_ids:
                open_rows.discard(row)
                continue
            texts[row].append(token)
            if on_token:
                on_token(row, token)
        if not open_rows or number + 1 == max_new_tokens:
            break
        if turns_at in lengths + number:
            ids, cache, seen = read([[*prompt, *text] for prompt, text in zip(prompts, texts)], number + 1)
            continue
        ids, cache, seen = decode(
            model, params, ids, lengths + number, cache, seen, fold(row_keys, number + 1), sampling=sampling
        )
    return texts


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Returns `text` with control characters but newline and tab written out: none of a model's reach the terminal."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


USAGE = """
usage: python -m lm.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT ...] | --chat [--system=TEXT] | --messages=FILE
         [--max_new_tokens=200] [--temperature=0.8] [--top_k=0] [--top_p=1] [--repetition_penalty=1] [--seed=0]
         [--step=best|last|N]

Continues a prompt with a run's checkpoint, as text on the terminal; or answers, in a chat (/help lists its commands) or once:
FILE is a JSON list of {"role", "content"} messages, or an object with such "messages". --temperature=0 takes the likeliest token.

example: python -m lm.generate --workdir=runs/finetune --prompt="To be" --max_new_tokens=200 --temperature=0.8 --top_k=50 --seed=0
example: python -m lm.generate --workdir=runs/chat --chat --system="You are brief."
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
    texts = {"workdir": "", "step": "best", "prompt": "", "chat": "false", "system": "", "messages": ""}
    flags, extra = split_flags(argv, {**texts, **numbers}, USAGE)
    prompts += [flags["prompt"]] if flags["prompt"] else []
    # As such characters Python passes on bytes of argv that are no text.
    if any("\udc80" <= char <= "\udcff" for char in "".join([*prompts, flags["system"]])):
        raise ConfigError("--prompt, --system: not UTF-8; give it as UTF-8 text")
    wanted = (bool(prompts), flags["chat"] == "true", bool(flags["messages"]))
    if not flags["workdir"] or sum(wanted) != 1 or extra:
        raise ConfigError(
            "name a run and one of a prompt, a chat, a file of messages: python -m lm.generate --workdir=DIR --prompt=TEXT "
            "(or --chat, or --messages=FILE); see --help"
        )
    if flags["system"] and not wanted[1]:
        raise ConfigError("--system goes with --chat; in a file of messages it is the first of them")
    value = {key: build.parse_number(key, flags[key]) for key in numbers}
    if not 1 <= value["max_new_tokens"] < 2**31:
        raise ConfigError(f"--max_new_tokens must be >= 1, got {flags['max_new_tokens']}")
    sampling = Sampling(value["repetition_penalty"], value["temperature"], int(value["top_k"]), value["top_p"])
    check_sampling(sampling)
    loaded = build.load_run(flags["workdir"], flags["step"], log=lambda text: print(text, file=sys.stderr))
    tokenizer = load_tokenizer(f"{flags['workdir']}/tokenizer")
    most, seed = int(value["max_new_tokens"]), int(value["seed"])
    if prompts:
        write_on(loaded, tokenizer, prompts, most, sampling, seed)
    else:
        from data_pipeline.chat import open_trained_chat
        from lm.chat import Speaker, answer_file, converse, open_terminal

        chat = open_trained_chat(tokenizer, flags["workdir"])
        speaker = Speaker(loaded.model, loaded.params, chat, loaded.config.data.add_bos, sampling, most, seed)
        if flags["messages"]:
            answer_file(speaker, flags["messages"])
        else:
            converse(speaker, flags["system"], *open_terminal())


def write_on(loaded: Any, tokenizer: Any, prompts: list[str], most: int, sampling: Sampling, seed: int) -> None:
    """Prints each prompt with what the model makes of it; one alone as it comes."""
    bos = [tokenizer.special.bos] if loaded.config.data.add_bos else []
    ids = [bos + tokenizer.encode(prompt) for prompt in prompts]
    alone = len(prompts) == 1
    shown = visible if sys.stdout.isatty() else str
    if alone:
        print(prompts[0], end="", flush=True)
    stream = tokenizer.stream()  # holds back bytes that do not make a whole character yet
    results = generate(
        loaded.model, loaded.params, ids, max_new_tokens=most, stop_ids=tokenizer.stop_ids, sampling=sampling, seed=seed,
        on_token=(lambda row, token: print(shown(stream.push(token)), end="", flush=True)) if alone else None,
    )  # fmt: skip
    if alone:
        print(stream.close())
    else:
        for prompt, result in zip(prompts, results):
            stream = tokenizer.stream()
            text = "".join(map(stream.push, result)) + stream.close()
            print(f"--- {prompt}{shown(text)}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)

"""Does our model compute what transformers computes from the same folder?

Logits in float32 on fixed prompts (English, Chinese, code, ids from all over the vocabulary, a long text, rows with
padding), greedy continuations, and rendered conversations.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.tokenizer import load_tokenizer
from lm.build import Loaded
from lm.config import MeshConfig, UserError
from lm.generate import generate
from lm.hf.source import find_foreign
from lm.hf.weights import open_weights
from lm.model.transformer import Model
from lm.params import Params
from lm.parts import make_model, param_shapes, with_shardings
from lm.sampling import Sampling
from lm.sharding import make_mesh, param_shardings

TOLERANCE = 1e-3  # of a logit in float32; of the largest logit where that is above 1
NEW_TOKENS = 32
LONG = 512
TEXTS = (
    "The quick brown fox jumps over the lazy dog. In 1969, 3.14159",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。今天天气很好，我们去公园散步吧！",
    "def f(x: int) -> int:\n    return x ** 2 if x > 0 else -x  # squares\n\n\n",
)
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "你好！"},
        {"role": "assistant", "content": "你好，有什么可以帮你？"},
        {"role": "user", "content": "  Write a haiku\n\nabout snow. 😀"},
    ],
)


def has_transformers() -> bool:
    return all(importlib.util.find_spec(name) for name in ("transformers", "torch"))


def load_ours(folder: Path) -> tuple[Model, Params]:
    """Our model on the folder's own weights, in float32."""
    found = find_foreign(f"hf:{folder}")
    mesh = make_mesh(MeshConfig())
    model, _ = make_model(found.model, (), mesh, LONG)
    shapes = param_shapes(model)
    weights = open_weights(found, shapes)
    params = weights.load(with_shardings(shapes, param_shardings(shapes, mesh)))
    weights.close()
    return model, params


def verify(folder: Path, run: Loaded | None, log: Callable[[str], None]) -> dict[str, Any]:
    """Compares `run` (None: the folder read by us) with what transformers makes of `folder`.

    Returns family, max_abs_diff, mean_abs_diff, mean_kl (nats a token), greedy_equal, tokens_equal, chat_equal, ok. A greedy
    continuation also counts as equal where it parts from theirs at two tokens whose logits are closer than the tolerance.
    """
    if not has_transformers():
        raise UserError("verify compares with transformers, which is not installed: pip install transformers torch")
    import torch
    import transformers

    found = find_foreign(f"hf:{folder}")
    family = found.family
    if run is None:
        model, params = load_ours(folder)
    else:
        params = {path: leaf.astype(jnp.float32) for path, leaf in run.params.items()}
        model = run.model
    if bool(found.labels) != bool(model.config.classes):
        raise UserError(f"of {folder} and the run, one is a classifier and the other a language model")
    if found.labels:
        from lm.hf.verify_classes import verify_classes

        return verify_classes(folder, run.config.data.labels if run else found.labels, model, params, log)

    def load_theirs() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
        ).eval()

    theirs, forgets = load_theirs(), model.config.rope_scaling.kind != "dynamic"  # which keeps what it stretched to
    tokens = _check_tokenizer(folder, log)
    worst, total, kl, places, largest = 0.0, 0.0, 0.0, 0, 1.0
    prompts, greedy = _prompts(folder, model, tokens is not None), True
    for name, rows in prompts.items():
        theirs = theirs if forgets else load_theirs()
        ours, others, there = _logits(model, params, theirs, rows)
        difference = np.abs(ours - others)[there]
        p, q = (jax.nn.log_softmax(x[there], axis=-1) for x in (others, ours))
        divergence = np.asarray((jnp.exp(p) * (p - q)).sum(-1))
        log(
            f"{name:28} max difference {difference.max():.1e}  mean {difference.mean():.1e}  KL {divergence.mean():.1e}"
        )
        worst, largest = max(worst, float(difference.max())), max(largest, float(np.abs(others[there]).max()))
        total, kl, places = total + float(difference.mean(-1).sum()), kl + float(divergence.sum()), places + len(p)
    tolerance = TOLERANCE * largest
    for rows in prompts.values():
        if len(rows[-1]) < LONG // 2:
            theirs = theirs if forgets else load_theirs()
            greedy &= _same_greedy(model, params, theirs, rows[-1], tolerance)
    result = {
        "family": family, "max_abs_diff": worst, "mean_abs_diff": total / places, "mean_kl": kl / places,
        "greedy_equal": greedy, "tokens_equal": tokens and tokens["tokens_equal"],
        "chat_equal": tokens and tokens["chat_equal"],
    }  # fmt: skip
    sound = worst <= tolerance and greedy and all(result[key] is not False for key in ("tokens_equal", "chat_equal"))
    return result | {"ok": bool(sound)}


def _prompts(folder: Path, model: Model, has_tokenizer: bool) -> dict[str, list[list[int]]]:
    """Rows of ids to compare on, by name."""
    rng = np.random.default_rng(0)
    vocab, longest = model.config.vocab_size, LONG
    if model.config.position == "learned":
        longest = min(longest, model.config.max_len - NEW_TOKENS)
    found = {}
    if has_tokenizer:
        tokenizer = load_tokenizer(str(folder))
        found = {f"text {i + 1}": [tokenizer.encode(text)[: longest // 4]] for i, text in enumerate(TEXTS)}
    found["ids from all the vocabulary"] = [rng.integers(0, vocab, min(64, longest)).tolist()]
    found[f"{longest} tokens"] = [rng.integers(0, vocab, longest).tolist()]
    # Where frequencies follow the length, transformers takes that of the longest row for all.
    size = min(40, model.config.rope_scaling.original_len or 40)
    found["rows with padding"] = [rng.integers(0, vocab, n).tolist() for n in (size, 17, 3)]
    return found


def _logits(
    model: Model, params: Params, theirs: Any, rows: list[list[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [B, T, V] of ours and theirs on left-padded rows, and where there is text [B, T]."""
    import torch

    width = max(map(len, rows))
    ids = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
    there = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int32)
    positions = np.maximum(there.cumsum(1) - 1, 0)
    with torch.no_grad():
        others = theirs(
            input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(there, dtype=torch.long),
            position_ids=torch.tensor(positions, dtype=torch.long),
        ).logits.numpy()  # fmt: skip
    plain = Model(model.config, model.runs)  # rows of any length and number: by the formula, on no mesh
    ours = np.asarray(jax.jit(plain.apply)(params, jnp.asarray(ids), jnp.asarray(positions), jnp.asarray(there)))
    return ours, others, there.astype(bool)


def _same_greedy(model: Model, params: Params, theirs: Any, prompt: list[int], tolerance: float) -> bool:
    import torch

    ours = generate(model, params, [prompt], max_new_tokens=NEW_TOKENS, sampling=Sampling(temperature=0.0))[0]
    row = torch.tensor([prompt])
    with torch.no_grad():
        out = theirs.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0, repetition_penalty=1.0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        if out == ours:
            return True
        place = next(i for i, pair in enumerate(zip(out, ours)) if pair[0] != pair[1])
        logits = theirs(torch.tensor([prompt + out[:place]])).logits[0, -1]
    return abs(float(logits[out[place]] - logits[ours[place]])) < tolerance


def _check_tokenizer(folder: Path, log: Callable[[str], None]) -> dict[str, bool | None] | None:
    """Compares ids of texts and of rendered conversations; None for a folder without a tokenizer."""
    import transformers

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        log("no tokenizer in the folder: ids are drawn at random")
        return None
    from data_pipeline.chat import open_chat

    ours = load_tokenizer(str(folder))
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokens = all(ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS)
    chat = None
    if ours.template:
        opened = open_chat(ours)
        chat = all(
            opened.prompt(messages)
            == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
            for messages in CONVERSATIONS
        )
    log(f"ids of texts {_word(tokens)}, ids of rendered conversations {_word(chat)}")
    return {"tokens_equal": tokens, "chat_equal": chat}


def _word(equal: bool | None) -> str:
    return "not compared: no chat template" if equal is None else "equal" if equal else "DIFFER"

"""Which tensor of a Hugging Face folder is which parameter of ours? One two-way table a family.

A row pairs one tensor with the parameters that it holds side by side. `{i}` is the layer's number, `{e}` the expert's: then
the tensor is one matrix of the parameter, and as many rows as experts hold it. Matrices of torch's Linear are transposed;
those of GPT-2's Conv1D are not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm.config import ModelConfig, UserError


@dataclass(frozen=True)
class Row:
    hf: str
    ours: tuple[str, ...]  # their last dimensions side by side make the tensor's
    transpose: bool = False
    per_head: bool = False  # q, k and v of head 0, then of head 1, ... (GPT-NeoX)
    expert: int | None = None  # which of the parameter's matrices

    def at(self, layer: int, experts: int) -> list[Row]:
        """This row for one layer, and there for each expert."""
        hf, block = self.hf.replace("{i}", str(layer)), f"block_{layer:02d}/"
        row = replace(self, hf=hf, ours=tuple(block + path for path in self.ours))
        if "{e}" not in hf:
            return [row]
        return [replace(row, hf=hf.replace("{e}", str(e)), expert=e) for e in range(experts)]

    def hf_shape(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        parts = [tuple(shapes[path])[self.expert is not None :] for path in self.ours]
        whole = (*parts[0][:-1], sum(part[-1] for part in parts))
        return whole[::-1] if self.transpose else whole

    def to_ours(self, tensor: np.ndarray, widths: Sequence[int], heads: int) -> list[np.ndarray]:
        """Cuts a tensor into parameters of these last dimensions: views of it, where that is possible."""
        if self.per_head:
            tensor = np.concatenate(np.split(tensor.reshape(heads, 3, -1, *tensor.shape[1:]), 3, axis=1))
            tensor = tensor.reshape(-1, *tensor.shape[3:])
        whole = tensor.T if self.transpose else tensor
        return np.split(whole, np.cumsum(widths)[:-1], axis=-1)

    def to_hf(self, params: Sequence[np.ndarray], heads: int) -> np.ndarray:
        whole = params[0] if len(params) == 1 else np.concatenate(params, axis=-1)
        tensor = whole.T if self.transpose else whole
        if self.per_head:
            tensor = np.stack(np.split(tensor.reshape(3 * heads, -1, *tensor.shape[1:]), 3), axis=1)
            tensor = tensor.reshape(-1, *tensor.shape[3:])
        return np.ascontiguousarray(tensor)


def _linear(hf: str, *ours: str, transpose: bool = True) -> list[Row]:
    """A torch Linear with its bias; GPT-2's Conv1D is one that is not transposed."""
    return [Row(f"{hf}.weight", ours, transpose), Row(f"{hf}.bias", tuple(f"{path}_bias" for path in ours))]


def _norm(hf: str, ours: str) -> list[Row]:
    return [Row(f"{hf}.weight", (f"{ours}/scale",)), Row(f"{hf}.bias", (f"{ours}/bias",))]


SCORE = Row("score.weight", ("classifier",), True)  # of ...ForSequenceClassification


def _llama_like(*changes: Row) -> list[Row]:
    layer = "model.layers.{i}"
    rows = [
        Row("model.embed_tokens.weight", ("embed",)),
        *_norm("model.norm", "norm_out"),
        Row("lm_head.weight", ("head",), True),
        SCORE,
        *_norm(f"{layer}.input_layernorm", "norm_attn"),
        *_norm(f"{layer}.post_attention_layernorm", "norm_mlp"),
        *(row for x in "qkv" for row in _linear(f"{layer}.self_attn.{x}_proj", f"attn/{x}")),
        *_linear(f"{layer}.self_attn.o_proj", "attn/out"),
        *(Row(f"{layer}.self_attn.{x}_norm.weight", (f"attn/{x}_scale",)) for x in "qk"),
        *(row for x in ("gate", "up", "down") for row in _linear(f"{layer}.mlp.{x}_proj", f"mlp/{x}")),
    ]
    replaced = {path for row in changes for path in row.ours}
    return [*(row for row in rows if not replaced & set(row.ours)), *changes]


_LAYER = "model.layers.{i}"
_AFTER = [
    *_norm(f"{_LAYER}.post_attention_layernorm", "norm_attn_out"),
    *_norm(f"{_LAYER}.post_feedforward_layernorm", "norm_mlp_out"),
]
_QKV = ("attn/q", "attn/k", "attn/v")
_GPT2 = [
    Row("transformer.wte.weight", ("embed",)),
    Row("transformer.wpe.weight", ("positions",)),
    *_norm("transformer.ln_f", "norm_out"),
    Row("lm_head.weight", ("head",), True),
    SCORE,
    *_norm("transformer.h.{i}.ln_1", "norm_attn"),
    *_norm("transformer.h.{i}.ln_2", "norm_mlp"),
    *_linear("transformer.h.{i}.attn.c_attn", *_QKV, transpose=False),
    *_linear("transformer.h.{i}.attn.c_proj", "attn/out", transpose=False),
    *_linear("transformer.h.{i}.mlp.c_fc", "mlp/up", transpose=False),
    *_linear("transformer.h.{i}.mlp.c_proj", "mlp/down", transpose=False),
]
_NEOX = [
    Row("gpt_neox.embed_in.weight", ("embed",)),
    *_norm("gpt_neox.final_layer_norm", "norm_out"),
    Row("embed_out.weight", ("head",), True),
    SCORE,
    *_norm("gpt_neox.layers.{i}.input_layernorm", "norm_attn"),
    *_norm("gpt_neox.layers.{i}.post_attention_layernorm", "norm_mlp"),
    *(replace(row, per_head=True) for row in _linear("gpt_neox.layers.{i}.attention.query_key_value", *_QKV)),
    *_linear("gpt_neox.layers.{i}.attention.dense", "attn/out"),
    *_linear("gpt_neox.layers.{i}.mlp.dense_h_to_4h", "mlp/up"),
    *_linear("gpt_neox.layers.{i}.mlp.dense_4h_to_h", "mlp/down"),
]


def _experts(mlp: str, gate: str, up: str, down: str) -> list[Row]:
    names = {"mlp/gate": gate, "mlp/up": up, "mlp/down": down}
    each = [Row(f"{_LAYER}.{mlp}.experts.{{e}}.{hf}.weight", (path,), True) for path, hf in names.items()]
    return [Row(f"{_LAYER}.{mlp}.gate.weight", ("mlp/router",), True), *each]


_GEMMA = _llama_like(*_AFTER, *_norm(f"{_LAYER}.pre_feedforward_layernorm", "norm_mlp"))
_LLAMA = _llama_like()
TABLES: dict[str, list[Row]] = {
    "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma2": _GEMMA, "gemma3_text": _GEMMA,
    "phi3": _llama_like(
        *_linear(f"{_LAYER}.self_attn.qkv_proj", *_QKV), *_linear(f"{_LAYER}.mlp.gate_up_proj", "mlp/gate", "mlp/up")
    ),
    "mixtral": _llama_like(*_experts("block_sparse_moe", "w1", "w3", "w2")),
    "qwen3_moe": _llama_like(*_experts("mlp", "gate_proj", "up_proj", "down_proj")),
    "olmo2": _llama_like(*_AFTER), "gpt2": _GPT2, "gpt_neox": _NEOX,
}  # fmt: skip

# Tensors that old files hold and that no model reads: causal masks and rotary frequencies.
IGNORED = re.compile(r".*\.(attn|attention)\.(bias|masked_bias)|.*rotary_emb\.inv_freq")
# What a file may leave out or add in front of all names.
PREFIXES = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}


def rows_of(family: str, config: ModelConfig, paths: Collection[str]) -> list[Row]:
    """The rows of a model that has the parameters `paths`, layer by layer; together they hold each parameter once."""
    rows = []
    for row in TABLES[family]:
        layers = range(config.layers)
        found = [one for layer in layers for one in row.at(layer, config.experts)] if "{i}" in row.hf else [row]
        rows += [one for one in found if all(path in paths for path in one.ours)]
    missing = set(paths) - {path for row in rows for path in row.ours}
    if missing:
        raise UserError(f"{family} models have no place for {', '.join(sorted(missing))}")
    return rows


def plain_names(family: str, names: Sequence[str]) -> dict[str, str]:
    """Returns {name as our tables have it: name in the file}, without the tensors that no model reads.

    Files of base models leave out the prefix ("h.0.ln_1.weight").
    """
    prefix = PREFIXES.get(family, "model.")
    kept = [name for name in names if not IGNORED.fullmatch(name)]
    bare = kept and not any(name.startswith(prefix) for name in kept)
    heads = ("lm_head.", "embed_out.", "score.")
    plain = {prefix + name if bare and not name.startswith(heads) else name: name for name in kept}
    if family == "gpt_neox" and "lm_head.weight" in plain:
        plain["embed_out.weight"] = plain.pop("lm_head.weight")
    return plain


def module_rows(family: str, config: ModelConfig, paths: Collection[str]) -> list[Row]:
    """The rows whose tensor is the weight of a module: not those of biases and of single experts."""
    return [row for row in rows_of(family, config, paths) if row.hf.endswith(".weight") and row.expert is None]

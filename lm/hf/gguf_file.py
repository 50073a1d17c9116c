"""Which Hugging Face tensors does a GGUF file hold?

llama.cpp's converter renames tensors and changes some; here each is changed back, exactly (conversion/ in llama.cpp).
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from lm.config import UserError
from lm.hf.gguf_config import FAMILIES, make_config
from lm.hf.gguf_header import GgufHeader, StoredTensor, import_gguf, read_gguf_header
from lm.hf.gguf_metadata import WAY_OUT
from lm.hf.gguf_tokenizer import write_gguf_tokenizer as write_gguf_tokenizer
from lm.hf.safetensors_header import read_bytes
from lm.hf.tensors import Shapes, Tensors, list_some

DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    30: np.dtype(ml_dtypes.bfloat16),
}  # by number of an encoding
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # go into the config
NAME = re.compile(r"(?:blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True)
class Names:
    """How one architecture is called in GGUF, and in a Hugging Face folder."""

    outer: dict[str, str]
    block: dict[str, str]
    layers: str = "model.layers"
    flipped: tuple[str, ...] = field(default=())  # weights that are stored with input and output exchanged


OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
ROUTER = {"ffn_gate_inp": "mlp.gate"}
EXPERTS = {f"{stem}_exps": hf.replace("mlp.", "mlp.experts.{e}.") for stem, hf in MLP.items()}  # all in one tensor
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{e}.w3", "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
}  # fmt: skip
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
AFTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA_NORMS = {**AFTER_NORMS, "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
NAMES = {
    "llama": Names(OUTER, ATTENTION | MLP | MIXTRAL | NORMS),
    "qwen2": Names(OUTER, ATTENTION | MLP | NORMS),
    "qwen3": Names(OUTER, ATTENTION | MLP | NORMS | QK_NORMS),
    "qwen3moe": Names(OUTER, ATTENTION | ROUTER | EXPERTS | NORMS | QK_NORMS),
    "olmo2": Names(OUTER, ATTENTION | MLP | AFTER_NORMS | QK_NORMS),
    "gemma2": Names(OUTER, ATTENTION | MLP | GEMMA_NORMS),
    "gemma3": Names(OUTER, ATTENTION | MLP | GEMMA_NORMS | QK_NORMS),
    "phi3": Names(OUTER, {
        "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj", **NORMS,
    }),
    "gpt2": Names(
        {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head"},
        {
            "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
        },
        "transformer.h", flipped=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "gptneox": Names(
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
        },
        "gpt_neox.layers",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """One tensor on its way to its Hugging Face form."""

    gguf: str  # name in the file
    stored: StoredTensor
    heads: int = 0  # rows of these heads are permuted for llama.cpp's order of rotated pairs
    fused_heads: int = 0  # q, k, v one after the other, which are to alternate head by head
    flipped: bool = False
    shift: float = 0.0  # was added to the weights

    @property
    def dtype(self) -> np.dtype:
        return DTYPES.get(self.stored.kind, DTYPES[0]) if not self.shift else DTYPES[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1] if self.flipped else self.stored.shape


def open_gguf(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Opens a GGUF file: its tensors under Hugging Face names, and the config.json that means the same.

    Quantised tensors come as float32, one at a time. Gemma's norms are stored with 1 added, so they come back with what
    rounding left of them (1e-7).
    """
    path = Path(path)
    with ExitStack() as files:
        header, file = read_gguf_header(path, files)
        _check_kind(header)

        def read_factors(name: str) -> np.ndarray:
            return _decode(path, file, name, header.tensors[name]).astype(np.float32).reshape(-1)

        config = make_config(header, read_factors)
        entries = _find_entries(header, config)
        kept = files.pop_all()

    def read(name: str) -> np.ndarray:
        entry = entries[name]
        return _restore(_decode(path, file, entry.gguf, entry.stored), entry)

    shapes: Shapes = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    config["dtype"] = shapes[_hf_name(header, "token_embd.weight")][0].name
    return Tensors(str(path), shapes, read, kept), config


def _check_kind(header: GgufHeader) -> None:
    fields, where = header.fields, str(header.path)
    arch = fields.get("general.architecture")
    if fields.get("general.type", "model") != "model":
        raise UserError(f"{where}: holds {fields['general.type']!r:.80}, not a model")
    if isinstance(count := fields.get("split.count"), int) and count > 1:
        raise UserError(
            f"{where}: one of {count} parts of a model; join them first: llama-gguf-split --merge FIRST OUT"
        )
    if arch not in FAMILIES:
        raise UserError(f"{where}: architecture {arch!r:.80} is not read; known: {', '.join(sorted(FAMILIES))}")
    if not header.tensors:
        raise UserError(f"{where}: holds a vocabulary and no tensors")


def _hf_name(header: GgufHeader, name: str) -> str:
    """Returns the Hugging Face name, or ''."""
    names = NAMES[header.fields["general.architecture"]]
    match = NAME.fullmatch(name)
    layer, stem, part = match.groups() if match else (None, "", "")
    found = (names.block if layer else names.outer).get(stem)
    return f"{f'{names.layers}.{layer}.' if layer else ''}{found}.{part}" if found else ""


def _find_entries(header: GgufHeader, config: dict[str, Any]) -> dict[str, _Entry]:
    known = {name: _hf_name(header, name) for name in header.tensors if name not in FACTORS}
    if unknown := [name for name, found in known.items() if not found]:
        arch = header.fields["general.architecture"]
        raise UserError(
            f"{header.path}: {len(unknown)} tensors that {arch} does not have here: {list_some(unknown)}; {WAY_OUT}"
        )
    entries: dict[str, _Entry] = {}
    for name, found in known.items():
        entry = _find_entry(header, config, name)
        if "{e}" in found:
            parts = _split_experts(header, entry, config.get("num_local_experts", 0))
            entries |= {found.replace("{e}", str(e)): part for e, part in enumerate(parts)}
        else:
            entries[found] = entry
    return entries


def _split_experts(header: GgufHeader, entry: _Entry, experts: int) -> list[_Entry]:
    """The matrices of a tensor that holds one for each expert, which lie one after the other."""
    stored = entry.stored
    if len(stored.shape) != 3 or stored.shape[0] != experts:
        raise UserError(
            f"{header.path}: tensor {entry.gguf!r} has shape {list(stored.shape)}, which are no {experts} experts' matrices"
        )
    size = stored.size // experts
    parts = (
        replace(stored, shape=stored.shape[1:], offset=stored.offset + e * size, size=size) for e in range(experts)
    )
    return [replace(entry, stored=part) for part in parts]


def _find_entry(header: GgufHeader, config: dict[str, Any], name: str) -> _Entry:
    arch, stored = header.fields["general.architecture"], header.tensors[name]
    stem, part = name.split(".")[-2:]
    heads = fused = 0
    if arch == "llama" and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
    if arch == "gptneox" and stem == "attn_qkv":
        fused = config["num_attention_heads"]
    rows = stored.shape[0] if stored.shape else 0
    if (heads and rows % (2 * heads)) or (fused and rows % (3 * fused)):
        raise UserError(f"{header.path}: tensor {name!r} has {rows} rows, which are no whole heads ({heads or fused})")
    flipped = part == "weight" and stem in NAMES[arch].flipped
    shift = 1.0 if arch in ("gemma2", "gemma3") and name.endswith("norm.weight") else 0.0
    return _Entry(name, stored, heads, fused, flipped, shift)


def _decode(path: Path, file: BinaryIO, name: str, stored: StoredTensor) -> np.ndarray:
    """Reads a tensor as it lies in the file; quantised ones become float32."""
    content = read_bytes(file, stored.offset, stored.size, f"{path}: tensor {name!r}")
    if stored.kind in DTYPES:
        return content.view(DTYPES[stored.kind]).reshape(stored.shape)
    gguf = import_gguf()
    rows = content.reshape(*stored.shape[:-1], -1) if stored.size else content
    with np.errstate(all="ignore"):
        return gguf.dequantize(rows, gguf.GGMLQuantizationType(stored.kind)).reshape(stored.shape)


def _restore(array: np.ndarray, entry: _Entry) -> np.ndarray:
    """Undoes what the converter did."""
    shape = array.shape
    if entry.heads:
        array = array.reshape(entry.heads, shape[0] // entry.heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    if entry.fused_heads:
        array = array.reshape(3, entry.fused_heads, -1, *shape[1:]).swapaxes(0, 1).reshape(shape)
    if entry.shift:
        array = array.astype(np.float32) - np.float32(entry.shift)
    return np.ascontiguousarray(array.T) if entry.flipped else array

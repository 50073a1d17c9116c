"""How does a Hugging Face folder become a run's workdir, and a workdir such a folder again?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from data_pipeline.config import TEXT
from data_pipeline.hf_folder import FILES, GENERATION
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from lm import build
from lm.checkpoint import Checkpoints
from lm.config import Config, ConfigError, InitConfig, MeshConfig, OptimConfig, UserError, to_json
from lm.hf.config_json import add_tokens, classifier_fields, write_config
from lm.hf.families import read_config
from lm.hf.source import find_foreign, follow_source, keep_origin, read_origin, same_model
from lm.hf.tokenizer_json import Inexpressible, write_tokenizer_json
from lm.hf.weights import open_weights, tensors_of
from lm.logger import write_json
from lm.model.adapters import merge
from lm.model.transformer import Model
from lm.mup import to_standard
from lm.params import count, split_stacks
from lm.parts import model_config, param_shapes, with_shardings
from lm.sharding import make_mesh, param_shardings
from lm.summary import versions

Log = Callable[[str], None]
DTYPES = ("float32", "bfloat16", "float16")


def check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name a new folder, or remove it")


def import_folder(source: str, out: Path, log: Log) -> None:
    """Makes a workdir with the weights, as exact as they are stored, at step 0; everything that takes a run takes it."""
    check_new(out)
    config = follow_source(Config(init=InitConfig(source=source)), out)
    found = find_foreign(source)
    if found.labels:
        template = str(found.fields.get("text_template") or "")
        if template and template.count(TEXT) != 1:
            raise UserError(f"{source}: text_template in config.json must hold {TEXT} once, got {template[:60]!r}")
        data = replace(config.data, task="classify", labels=found.labels, text_template=template)
        config = replace(config, model=replace(config.model, classes=len(found.labels)), data=data)
    tokenizer = load_tokenizer(config.data.tokenizer.path)
    model_config(config, tokenizer.vocab_size)  # refuses a tokenizer that the embedding has no rows for
    shapes = param_shapes(Model(config.model))
    weights = open_weights(found, shapes)
    stored = {str(weights.dtype_of(path)) for path in shapes}
    held = "bfloat16" if stored == {"bfloat16"} else "float32"  # which holds all of float16 and float32
    config = replace(config, optim=OptimConfig(train=((".*", False),), frozen_dtype=held))
    held_shapes = {path: leaf.update(dtype=held) for path, leaf in shapes.items()}
    params = weights.load(with_shardings(held_shapes, param_shardings(held_shapes, make_mesh(MeshConfig()))))
    weights.close()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer")
    config = replace(
        config, data=replace(config.data, tokenizer=replace(config.data.tokenizer, path=f"{out}/tokenizer"))
    )
    shutil.rmtree(out / "gguf_tokenizer", ignore_errors=True)
    keep_origin(source, out)
    write_json(out / "config.json", to_json(config))
    checkpoints = Checkpoints(out, 1, log)
    checkpoints.save(0, {"params": params}, {
        "config": to_json(config), "data_sha256": "", "tokenizer_sha256": tokenizer.sha256, "progress": {},
        "vocab_size": config.model.vocab_size, "peak_lr": None, "start": f"imported from {source}", "saved_step": 0,
        "best_step": 0, "data_state": None,
    })  # fmt: skip
    checkpoints.close()
    log(f"{found.family}: {len(shapes)} parameters, {count(params):,} numbers in {held}, in {out}")


def export_run(workdir: Path, out: Path, step: str, dtype: str, family: str, log: Log) -> build.Loaded:
    """Writes a run's weights as a folder that transformers reads, and returns the run; nothing is left when it fails.

    `dtype` "": that of the model it goes back to, else float32. `family` "": likewise, else the first that can hold it.
    """
    check_new(out)
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"--dtype={dtype}: is not one of {', '.join(DTYPES)}")
    loaded = build.load_run(str(workdir), step, log, any_task=True)
    if loaded.model.config.classes and loaded.model.config.pooling != "last":
        raise UserError(
            f"{workdir} reads the {loaded.model.config.pooling} of a text (model.pooling); classifiers of Hugging Face read its "
            "last token, so this one can be used here alone"
        )
    params = split_stacks(loaded.params)
    if loaded.config.lora.rank or any(path.endswith("_absmax") for path in params):
        params = merge(params, loaded.model.config.adapters)[0]
    params, config = to_standard(params, loaded.config.model)
    model = replace(config, vocab_size=loaded.model.config.vocab_size, max_len=loaded.model.config.max_len)
    fields = read_origin(workdir)
    if not fields or not same_model(read_config(fields)[1], model) or family not in ("", fields["model_type"]):
        fields = write_config(model, max(loaded.config.data.seq_len, model.max_len), family)
        dtype = dtype or "float32"
    dtype = dtype or str(fields.get("dtype") or fields.get("torch_dtype") or "float32")
    tokenizer = load_tokenizer(f"{workdir}/tokenizer")
    name, old = ("dtype", "torch_dtype") if "dtype" in fields else ("torch_dtype", "dtype")
    fields = {key: value for key, value in fields.items() if key != old} | {name: dtype}
    if tokenizer.kind != "hf" or "eos_token_id" not in fields:
        fields = add_tokens(fields, tokenizer.special, tokenizer.stop_ids)
    if loaded.model.config.classes:
        special = tokenizer.special
        pad = special.pad if special.pad >= 0 else special.eos
        data = loaded.config.data
        fields = classifier_fields(fields, data.labels, pad, data.text_template)
    shapes, make = tensors_of(params, fields["model_type"], model, lambda path: jnp.dtype(dtype))
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.parent / f".{out.name}.half"
    shutil.rmtree(half, ignore_errors=True)
    try:
        from lm.hf.tensors import write_folder

        half.mkdir()
        files = write_folder(half, shapes, make)
        write_json(half / "config.json", fields)
        missing = _write_tokenizer(workdir / "tokenizer", half, fields, tokenizer, loaded.config.data.add_bos)
        _write_card(half, workdir, loaded, dtype)
        out.exists() and out.rmdir()
        half.rename(out)
    except OSError as error:
        raise UserError(f"{out} could not be written: {error}") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if missing:
        log(f"warning: {out} holds no tokenizer that transformers reads, as none gives the same ids: {missing}")
    log(f"{fields['model_type']}: {len(shapes)} tensors in {dtype}, {', '.join(files)}, in {out}")
    return loaded


def _write_tokenizer(
    folder: Path, out: Path, fields: dict[str, Any], tokenizer: Tokenizer, adds_bos: bool
) -> Inexpressible | None:
    """Writes the tokenizer of a run, as it came or as a tokenizer.json; returns why there is none."""
    found = [name for name in FILES if (folder / name).is_file()]
    for name in found:
        shutil.copyfile(folder / name, out / name)
    if GENERATION not in found:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(out / GENERATION, {name: fields[name] for name in names if fields.get(name) is not None})
    try:
        if tokenizer.kind != "hf":
            write_tokenizer_json(tokenizer, out, adds_bos)
    except Inexpressible as error:
        return error
    return None


def _write_card(out: Path, workdir: Path, loaded: build.Loaded, dtype: str) -> None:
    lines = [
        f"# {workdir.name}", "",
        f"Exported from step {loaded.step} of a run of lm: {count(loaded.params):,} parameters in {dtype}.",
        f"It was {json.dumps(loaded.config.init.source) if loaded.config.init.source else 'random weights'} at the start.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}.",
    ]  # fmt: skip
    (out / "README.md").write_text("\n".join(lines) + "\n")

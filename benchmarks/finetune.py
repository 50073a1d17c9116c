"""How does fine-tuning an open-weight model go here, beside transformers and peft?

The top layers with the last norm, then LoRA of rank 16 on all linear layers, from the same folder, on the same rows in the same order, at the
same constant rate, AdamW without decay, clipped at 1.0, float32; the sides take turns. `loss` is the mean over the last quarter of the
steps, `apart` the largest difference of a step's loss from ours (adapters start at other random numbers: it is noise there), `peak` the
most memory that the process held. Rows are conversations through the folder's own template, one a row, cut to --seq_len, answers learned.

    python benchmarks/finetune.py [--out=FILE.jsonl] [--quick] --folder=FOLDER --data=FILE.jsonl [--how=top,LoRA] [--top=2] [--rate=1e-4,2e-4]
                                  [--seq_len=512] [--batch_size=4] [--turns=5] [--steps=4] [--sides=ours,transformers] [--plot=FILE.png]

--quick needs no folder: a tiny random Llama and random rows. Needs no TensorFlow; without transformers (and peft), ours only.

example: python benchmarks/finetune.py --folder=models/SmolLM2-135M-Instruct --data=dialogues.jsonl --plot=curves.png
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Row, Side, Table, describe_machine, give_turn, median_row, say, warn_of_others
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags

COLUMNS = (
    "side", "trained", "steps", "ms a step", "spread", "tokens/s", "loss, first", "loss", "apart", "mean", "GiB, peak",
    "cores of others",
)  # fmt: skip
TARGETS = {"ours": "tuning:Ours", "transformers": "tuning:Theirs"}


def write_tiny_folder(folder: Path) -> None:
    """A random Llama of three layers."""
    import jax
    import jax.numpy as jnp

    from lm.config import ModelConfig
    from lm.hf.config_json import write_config
    from lm.hf.tensors import write_folder
    from lm.hf.weights import tensors_of
    from lm.model.transformer import Model

    config = ModelConfig(layers=3, dim=32, heads=4, kv_heads=2, mlp_dim=64, vocab_size=64, max_len=64)
    params = Model(config).init_params(jax.random.key(0))
    write_folder(folder, *tensors_of(params, "llama", config, lambda path: jnp.dtype("float32")))
    (folder / "config.json").write_text(json.dumps(write_config(config, 64, "llama")))


def random_rows(rows: int, seq_len: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Rows of different lengths, learned from a quarter of the row on."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(seq_len // 2, seq_len + 1, rows)
    places = np.arange(seq_len)[None]
    ids = rng.integers(0, vocab_size, (rows, seq_len + 1)).astype(np.int32)
    weights = (places < lengths[:, None]) & (places >= seq_len // 4)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights.astype(np.float32), "lengths": lengths}


def encode_rows(folder: str, data: str, seq_len: int, most: int) -> dict[str, np.ndarray]:
    """The first conversations of a file as rows [R, T]."""
    from data_pipeline.chat import encode_rendered, open_chat
    from data_pipeline.config import SourceConfig
    from data_pipeline.forms import record_from_fields
    from data_pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    chat = open_chat(tokenizer)
    rows: list[tuple[list[int], list[bool]]] = []
    with open(data, encoding="utf-8") as file:
        lines = list(itertools.islice(file, most))
    for line in lines:
        record: Any = record_from_fields(json.loads(line), SourceConfig())
        if getattr(record, "chat", None) is None:
            raise UserError(f"{data}: a row is no conversation: {line[:80]}")
        ids, learned = encode_rendered(chat.render(record.chat), tokenizer, False)
        rows.append((ids[: seq_len + 1], learned[: seq_len + 1]))
    found = {name: np.zeros((len(rows), seq_len), np.int32) for name in ("tokens", "targets")}
    weights = np.zeros((len(rows), seq_len), np.float32)
    for row, (ids, learned) in enumerate(rows):
        found["tokens"][row, : len(ids) - 1], found["targets"][row, : len(ids) - 1] = ids[:-1], ids[1:]
        weights[row, : len(ids) - 1] = learned[1:]
    return {**found, "weights": weights, "lengths": np.array([len(ids) - 1 for ids, _ in rows], np.int32)}


def check_sides(names: list[str], hows: list[str]) -> list[str]:
    if unknown := [name for name in names if name not in TARGETS]:
        raise ConfigError(f"--sides: no {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if unknown := [how for how in hows if how not in ("top", "LoRA")]:
        raise ConfigError(f"--how: no {', '.join(unknown)}; there are top, LoRA")
    needed = ("torch", "transformers", *(["peft"] if "LoRA" in hows else []))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and "transformers" in names:
        say(f"left out: transformers; not installed: {', '.join(missing)}")
        names = [name for name in names if name != "transformers"]
    return names


def measure(how: str, rate: float, names: list[str], spec: Row, turns: int, steps: int) -> list[Row]:
    """Returns a row for each side, `losses` among it; the sides take `turns` turns of `steps` steps, and one untimed before each."""
    sides, curves = [], {name: f"{spec['rows']}.{how}.{name}" for name in names}
    try:
        for name in names:
            say(f"{how}: starting {name}")
            sides.append(Side(name, TARGETS[name], {**spec, "how": how, "rate": rate, "curve": curves[name]}))
        for turn in range(turns):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                give_turn(side, sides, steps)
            say(f"{how}: turn {turn + 1} of {turns} done")
        rows = [median_row(side) for side in sides]
    finally:
        for side in sides:
            side.close()
    for row in rows:
        row["losses"] = json.loads(Path(curves[row["side"]]).read_text())
        last = row["losses"][-max(len(row["losses"]) // 4, 1) :]
        apart = np.abs(np.subtract(row["losses"], rows[0]["losses"]))
        row.update(
            how=how, rate=rate, loss=float(np.mean(last)), apart=float(apart.max()), apart_mean=float(apart.mean())
        )
        row["tokens_per_sec"] = spec["tokens"] / row["seconds"]
    return rows


def plot(rows: list[Row], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    hows = list(dict.fromkeys(row["how"] for row in rows))
    figure, axes = plt.subplots(1, len(hows), figsize=(6 * len(hows), 4), squeeze=False)
    for ax, how in zip(axes[0], hows):
        for row, style in zip((row for row in rows if row["how"] == how), ("-", "--")):
            ax.plot(range(1, len(row["losses"]) + 1), row["losses"], style, label=row["side"])
        ax.set(title=how, xlabel="step", ylabel="loss, nats a token")
        ax.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def cells(row: Row) -> list[str]:
    return [
        row["side"], row["how"], f"{len(row['losses'])}", f"{row['seconds'] * 1e3:,.0f}", f"{row['spread']:.0%}",
        f"{row['tokens_per_sec']:,.0f}", f"{row['losses'][0]:.4f}", f"{row['loss']:.4f}", f"{row['apart']:.1e}",
        f"{row['apart_mean']:.1e}", f"{(row['rss_bytes'] or 0) / 2**30:.2f}", f"{row['others_cores']:.2f}",
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    defaults = {
        "out": "", "quick": "false", "folder": "", "data": "", "how": "top,LoRA", "top": "2", "rate": "1e-4,2e-4", "seq_len": "512",
        "batch_size": "4", "turns": "5", "steps": "4", "sides": ",".join(TARGETS), "plot": "",
    }  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    top, seq_len, batch, turns, steps = (int(flags[n]) for n in ("top", "seq_len", "batch_size", "turns", "steps"))
    hows, rates = flags["how"].split(","), [float(rate) for rate in flags["rate"].split(",")]
    names = check_sides(flags["sides"].split(","), hows)
    quick = flags["quick"] == "true"
    if not quick and not (flags["folder"] and flags["data"]):
        raise ConfigError("name a model and conversations: --folder=FOLDER --data=FILE.jsonl; see --help")
    with tempfile.TemporaryDirectory() as place:
        folder, spec = flags["folder"], {"top": top, "batch_size": batch, "rows": f"{place}/rows.npz"}
        if quick:
            seq_len, turns, steps, folder = 32, 1, 2, f"{place}/tiny"
            Path(folder).mkdir()
            write_tiny_folder(Path(folder))
            rows = random_rows(16, seq_len, 64)
        else:
            rows = encode_rows(folder, flags["data"], seq_len, batch * (2 + turns * (steps + 1)))
        np.savez(spec["rows"], **rows)  # pyright: ignore[reportArgumentType]
        spec |= {"folder": folder, "tokens": float(batch * rows["lengths"].mean())}
        machine = describe_machine()
        print(f"{folder}, {batch} rows of {seq_len}, {rows['lengths'].sum() / rows['tokens'].size:.0%} full, "
              f"{rows['weights'].sum() / rows['lengths'].sum():.0%} learned; {machine['machine']}, load {machine['load']}\n")  # fmt: skip
        table, found = Table("finetune", COLUMNS, flags["out"]), []
        for how, rate in zip(hows, rates * len(hows)):
            found += measure(how, rate, names, spec, turns, steps)
            for row in found[-len(names) :]:
                table.add(row, cells(row))
    if flags["plot"]:
        plot(found, flags["plot"])
    warn_of_others(found)


if __name__ == "__main__":
    run_main(main)

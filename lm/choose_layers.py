"""Which blocks should a fine-tune train? Probes of each, a few real steps of each alone, and on demand a longer sweep beside them.

    python -m lm.choose_layers --config=configs/finetune.py --workdir=runs/choose

docs/choosing-layers.md says what each number means and how well it predicted the sweep.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm.config import Config, ConfigError, OptimConfig, UserError, to_json
from lm.logger import Ticker, write_json
from lm.metrics import finite_or_none
from lm.offer import Offer, find_offer
from lm.params import block_name
from lm.parts import Parts, make_parts
from lm.probes import Scores, measure_gradients, measure_paths, score
from lm.sharding import local_rows, put_batch, whole_rows
from lm.start import load_params
from lm.trials import Trials

HELD_BATCHES = 4  # of the train split, on which trials are compared
NOMINEES = {"trial": 2, "gain": 1}  # how many of each ranking's best meet in the final
PROBES = ("final", "trial", "gain", "rgn", "fisher", "snr", "update")


def part_of(path: str) -> str:
    """Attention or MLP of a block, each with its norms: `block_03/attn`.

    >>> part_of("block_03/norm_attn/scale"), part_of("block_03/mlp/up"), part_of("head")
    ('block_03/attn', 'block_03/mlp', 'head')
    """
    found = re.match(r"(block_\d+)/(?:norm_)?(attn|mlp)", path)
    return f"{found[1]}/{found[2]}" if found else path


class Search:
    """One start point, and everything that is asked of it."""

    def __init__(self, config: Config, data: Any, peak_lr: float, offer: Offer, log: Callable[[str], None]):
        self.offer = offer
        every = self.offer.config(config, list(self.offer.blocks))
        train = replace(every.train, remember="", ema_decay=0.0)  # of the steps here nothing is kept
        every = replace(
            every, model=replace(every.model, scan=True), train=train
        )  # scanned: any depth compiles as fast
        self.parts: Parts = make_parts(every, data.tokenizer.vocab_size, peak_lr)
        self.params = load_params(self.parts, data.tokenizer.sha256, log)
        self.trials = Trials(self.parts, self.params, data.tokenizer.token_bytes())
        self.config, self.data = every, data
        self.steps = 0  # that blocks alone have taken so far, gradients of probes among them

    def batches(self, first: int, stop: int) -> Iterator[Any]:
        """The batches of steps `first` to `stop` of the train split."""
        stream = self.data.train_batches(0, local_rows(self.parts.mesh, self.config.data.batch_size), None)
        try:
            for number in range(stop):
                batch = next(stream)
                if number >= first:
                    yield batch
        finally:
            stream.close()

    def count_fresh(self, needed: int, wanted: int) -> int:
        """How many batches to train on, so that those held out beside them repeat no row; UserError for fewer than `needed`."""
        if self.config.data.streaming:
            return max(needed, wanted)
        rows, size = self.data.summary()["rows"]["train"], self.config.data.batch_size
        if rows // size - HELD_BATCHES < needed:
            raise UserError(
                f"the train split has {rows} rows, and {needed} batches with {HELD_BATCHES} held out need "
                f"{(needed + HELD_BATCHES) * size}: lower --batches, --trial or config.data.batch_size, or add text"
            )
        return min(max(needed, wanted), rows // size - HELD_BATCHES)

    def probe(self, batches: Sequence[Any]) -> tuple[Scores, Scores]:
        """Returns the scores of whole blocks, and of their attention and MLP."""
        size, mesh = self.config.data.batch_size, self.parts.mesh
        ticker = Ticker("probing, batch", len(batches))

        def arrays() -> Any:
            for number, batch in enumerate(batches):
                self.steps += 1
                yield put_batch(batch, mesh, size)
                ticker.update(number + 1)

        gradients = measure_gradients(self.parts, self.params, arrays())
        ticker.close()
        sums = measure_paths(self.parts, self.params, gradients)
        return score(sums, len(batches), lambda path: path.partition("/")[0]), score(sums, len(batches), part_of)

    def try_blocks(self, blocks: Sequence[str], optim: OptimConfig, steps: int, fresh: int) -> dict[str, float]:
        """Returns how much lower the loss on held-out batches is after `steps` steps of each block alone.

        Training goes through the first `fresh` batches, over and over; those after them are held out.
        """

        def forever() -> Iterator[Any]:
            while True:
                yield from self.batches(0, fresh)

        size, held = self.config.data.batch_size, list(self.batches(fresh, fresh + HELD_BATCHES))
        before = self.trials.evaluate(self.params, held, size)["loss"]
        found, ticker = {}, Ticker(f"{steps} steps of each block alone, block", len(blocks))
        for number, block in enumerate(blocks, 1):
            params = self.trials.train(self.moves(int(block.removeprefix("block_"))), forever(), optim, steps)
            self.steps += steps
            found[block] = before - self.trials.evaluate(params, held, size)["loss"]
            ticker.update(number)
        ticker.close()
        return found

    def moves(self, block: int | None) -> Callable[[str], bool]:
        """Says of a path whether it moves when this block (None: every block) is trained."""
        inside = {p for b, paths in self.offer.blocks.items() if block in (None, b) for p in paths}
        return lambda path: path in inside or path in self.offer.outside

    def sweep(self, steps: int) -> dict[str, Any]:
        """Trains each block alone for `steps` steps of the config's schedule; returns each one's validation loss."""
        config, mesh = self.config.train, self.parts.mesh
        size = whole_rows(config.eval_batch_size, mesh)
        rows = local_rows(mesh, self.config.data.batch_size)
        ticker = Ticker(f"{steps} steps of each block alone, block", len(self.offer.blocks) + 1)

        def validate(params: Any) -> dict[str, float | None]:
            batches = self.data.eval_batches("validation", size, local_rows(mesh, size))
            result = self.trials.evaluate(params, batches, size, config.eval_rows)
            return {key: finite_or_none(float(result[key])) for key in ("loss", "loss_stderr", "accuracy")}

        def run(number: int, block: int | None) -> dict[str, float | None]:
            stream = self.data.train_batches(0, rows, None)
            params = self.trials.train(self.moves(block), stream, self.config.optim, steps)
            stream.close()
            result = validate(params)
            ticker.update(number)
            return result

        began, start = time.perf_counter(), validate(self.params)
        blocks = {block_name(block): run(number, block) for number, block in enumerate(self.offer.blocks, 1)}
        cost = {"steps": steps * len(blocks), "seconds": round(time.perf_counter() - began, 2)}
        every = run(len(blocks) + 1, None)
        ticker.close()
        losses = {name: result["loss"] for name, result in blocks.items()}
        best = best_first({name: -math.inf if loss is None else -loss for name, loss in losses.items()})[0]
        return {
            "steps": steps, "split": "validation", "start": start, "blocks": blocks, "all": every, "best": best, "cost": cost
        }  # fmt: skip


def best_first(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: -scores[name] if math.isfinite(scores[name]) else math.inf)


def rank(search: Search, flags: Flags) -> tuple[Scores, Scores, list[str]]:
    """Returns the scores of blocks, of their parts, and the blocks, best first.

    Probes look one step ahead and short trials few, and they err in different ways: the best of both meet in a longer trial.
    """
    names = [block_name(block) for block in search.offer.blocks]
    fresh = search.count_fresh(max(flags.batches, flags.trial), flags.final)
    scores, parts = search.probe(list(search.batches(0, flags.batches)))
    scores = {probe: {name: values[name] for name in names} for probe, values in scores.items()}
    optim = search.config.optim
    ranking = nominees = best_first(scores["gain"])
    if flags.trial:
        falling = replace(optim, schedule="linear", warmup_steps=0, decay_steps=0, end_lr_ratio=0.0)
        scores = {"trial": search.try_blocks(names, falling, flags.trial, fresh), **scores}
        ranking = best_first(scores["trial"])
    if flags.final:
        nominees = list(dict.fromkeys([*ranking[: NOMINEES["trial"]], *nominees[: NOMINEES["gain"]]]))
        warmup = min(optim.warmup_steps, flags.final // 10)
        final = search.try_blocks(
            sorted(nominees), replace(optim, warmup_steps=warmup, decay_steps=0), flags.final, fresh
        )
        scores = {"final": final, **scores}
        ranking = [*best_first(final), *(name for name in ranking if name not in final)]
    return scores, parts, ranking


def format_table(result: Mapping[str, Any]) -> str:
    """What was found, block by block with its attention and MLP, as the page that is printed."""
    scores, parts, sweep = result["scores"], result["parts"], result["exhaustive"]
    probes = [name for name in PROBES if name in scores]
    lines = [
        f"{'':16}"
        + "".join(f"{name:>11}" for name in probes)
        + (f"{'sweep loss':>13}{'accuracy':>10}" if sweep else "")
    ]

    def cells(table: Scores, name: str) -> str:
        values = [table.get(probe, {}).get(name) for probe in probes]
        return "".join(f"{'':>11}" if value is None else f"{value:>11.3g}" for value in values)

    for name in sorted(result["ranking"]):
        line, mark = cells(scores, name), " *" if name in result["chosen"] else ""
        if sweep:
            line += "".join(
                f"{'-' if v is None else format(v, '.4f'):>{w}}"
                for v, w in ((sweep["blocks"][name]["loss"], 13), (sweep["blocks"][name]["accuracy"], 10))
            )
        lines.append(f"{name + mark:16}{line}")
        lines += [
            f"{'  ' + part:16}{cells(parts, f'{name}/{part}')}"
            for part in ("attn", "mlp")
            if f"{name}/{part}" in parts["gain"]
        ]
    lines.append(f"{'best':16}" + "".join(f"{best_first(scores[probe])[0]:>11}" for probe in probes))
    for name in ("start", "all") if sweep else ():
        loss, accuracy = (math.nan if sweep[name][k] is None else sweep[name][k] for k in ("loss", "accuracy"))
        lines.append(f"{name:16}{'':{11 * len(probes)}}{loss:>13.4f}{accuracy:>10.4f}")
    return "\n".join(lines)


def choose(config: Config, data: Any, peak_lr: float, flags: Flags, log: Callable[[str], None]) -> dict[str, Any]:
    """Probes, tries and ranks the blocks; returns what layers.json holds. Raises UserError for what cannot be asked."""
    began = time.perf_counter()
    offer = find_offer(config, data.tokenizer.vocab_size)
    if flags.blocks > len(offer.blocks):
        raise ConfigError(f"--blocks={flags.blocks}: there are {len(offer.blocks)} blocks to choose from")
    if flags.exhaustive and not data.has_split("validation"):
        raise UserError(
            "--exhaustive compares blocks on validation data, and there is none: raise data.split.validation"
        )
    if flags.exhaustive and flags.exhaustive <= config.optim.warmup_steps:
        raise ConfigError(
            f"--exhaustive={flags.exhaustive} is not longer than config.optim.warmup_steps={config.optim.warmup_steps}"
        )
    search = Search(config, data, peak_lr, offer, log)
    scores, parts, ranking = rank(search, flags)
    cost = {"steps": search.steps, "seconds": round(time.perf_counter() - began, 2)}
    chosen = sorted(ranking[: flags.blocks])
    numbers = [int(name.removeprefix("block_")) for name in chosen]
    sweep = search.sweep(flags.exhaustive) if flags.exhaustive else None
    return {
        "ranking": ranking, "by": next(iter(scores)), "scores": scores, "parts": parts, "chosen": chosen,
        "train_table": [list(row) for row in offer.table(numbers, config.model.layers)],
        "lora_targets": list(offer.targets(numbers)), "exhaustive": sweep, "batches": flags.batches, "trial_steps": flags.trial,
        "final_steps": flags.final, "cost": cost,
        "peak_lr": peak_lr, "seconds": round(time.perf_counter() - began, 2), "config": to_json(config),
    }  # fmt: skip


def next_lines(result: Mapping[str, Any], name: str) -> list[str]:
    """What to write into the config, and the command that does the same."""
    table = tuple(tuple(row) for row in result["train_table"])
    lines, flags = [f"c.optim.train = {table!r}"], f'--config.optim.train="{table!r}"'
    if result["lora_targets"]:
        lines.append(f"c.lora.targets = {tuple(result['lora_targets'])!r}")
        flags += f' --config.lora.targets="{tuple(result["lora_targets"])!r}"'
    return [*lines, "Next:", f"  python launch.py --config={name} {flags}"]


USAGE = """
usage: python -m lm.choose_layers --config=FILE [--workdir=runs/choose] [--blocks=1] [--batches=8] [--trial=16]
                                  [--final=200] [--exhaustive=STEPS] [--config.KEY=VALUE ...]

Ranks the blocks of the model at init.source for the data of the config. Gradients of --batches batches say what one step of
each block would gain; --trial steps of each block alone say how much lower the loss on held-out rows of the train split gets; the
two best by that and the best by gain meet in --final steps (0 leaves out either). --exhaustive trains each block alone for STEPS of the config's
schedule and prints its validation loss beside all that. Prints the optim.train that trains the best --blocks; leaves layers.json in the workdir. No checkpoint.

example: python -m lm.choose_layers --config=configs/finetune.py --exhaustive=100
"""


@dataclass(frozen=True)
class Flags:
    blocks: int = 1
    batches: int = 8
    trial: int = 16
    final: int = 200
    exhaustive: int = 0


def read_flags(words: Mapping[str, str]) -> Flags:
    """Raises ConfigError for what is no number, or too small a one."""
    least = {"blocks": 1, "batches": 2, "trial": 0, "final": 0, "exhaustive": 0}
    problems = [
        f"--{name}: a whole number of at least {low}, got {words[name]!r}"
        for name, low in least.items()
        if not words[name].isdigit() or int(words[name]) < low
    ]
    if not problems and int(words["batches"]) % 2:
        problems.append(f"--batches: an even number, since one half tests the other, got {words['batches']}")
    if problems:
        raise ConfigError(problems)
    return Flags(**{name: int(words[name]) for name in least})


def main(argv: list[str]) -> None:
    import jax

    from data_pipeline.batch import open_data
    from data_pipeline.schema import split_flags
    from lm.check import follow_data, read_config
    from lm.start import find_peak_lr

    defaults = {field.name: str(field.default) for field in fields(Flags)}
    words, overrides = split_flags(argv, {"config": "", "workdir": "runs/choose", **defaults}, USAGE)
    flags = read_flags(words)
    if not words["config"]:
        raise ConfigError("name a config file: python -m lm.choose_layers --config=configs/finetune.py; see --help")
    config = read_config(words["config"], overrides, jax.device_count())
    if not config.init.source:
        raise ConfigError(
            "config.init.source is empty: of random weights no block is better than another. Name the run to start from, "
            "--config.init.source=runs/pretrain"
        )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    data = open_data(config.data, log=say)
    config = follow_data(config, data)
    peak_lr = find_peak_lr(config, say)
    if peak_lr is None:
        raise ConfigError(
            f"config.optim.peak_lr='auto': {config.init.source} does not say its rate; name one, or run lm.range_test"
        )
    result = choose(config, data, peak_lr, flags, say)
    workdir = Path(words["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "layers.json", result)
    print(format_table(result))
    sweep, costs = result["exhaustive"], {"ranking": result["cost"]}
    if sweep:
        costs["sweep of the blocks"] = sweep["cost"]
        best, top = (sweep["blocks"][name]["loss"] for name in (sweep["best"], result["ranking"][0]))
        print(
            f"best of the sweep: {sweep['best']}, {best:.4f}; {result['ranking'][0]} ranked first: {top / best - 1:+.2%}"
        )
    print("cost: " + ", ".join(f"{name} {c['steps']} steps, {c['seconds']:.0f} s" for name, c in costs.items()))
    print(f"* chosen by {result['by']}; {workdir}/layers.json has all of it, {result['seconds']:.0f} s. To train it:")
    print("\n".join(next_lines(result, words["config"])))


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)

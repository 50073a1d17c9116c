"""What model does a config make, and how is each parameter treated? Nothing is trained.

python -m lm.show --config=configs/finetune.py
"""

from __future__ import annotations

import re

from lm.check import name_classes, read_config
from lm.config import ConfigError, changed_keys

USAGE = """
usage: python -m lm.show --config=FILE [--config.KEY=VALUE ...]

Prints what differs from the defaults, every parameter with its treatment, and the freeze receipt. Trains nothing.

example: python -m lm.show --config=configs/finetune.py
"""


def main(argv: list[str]) -> None:
    import jax

    from data_pipeline.batch import open_data
    from data_pipeline.schema import split_flags
    from lm.model.transformer import Model
    from lm.mup import rate_factor
    from lm.optim import make_schedule, turning_points
    from lm.params import count
    from lm.parts import abstract_batch, param_shapes
    from lm.phases import add_phases, make_phases
    from lm.receipt import format_rates, format_receipt, make_receipt
    from lm.sharding import param_spec
    from lm.start import find_peak_lr

    flags, overrides = split_flags(argv, {"config": ""}, USAGE)
    if not flags["config"]:
        raise ConfigError("name a config file: python -m lm.show --config=configs/finetune.py; see --help")
    config = read_config(flags["config"], overrides, jax.device_count())
    for key, old, new in changed_keys(config):
        print(f"config.{key} = {new!r} (default {old!r})")
    data = open_data(config.data)
    if data.classes:
        config = name_classes(config, data.classes.names, data.classes.counts)
    known = find_peak_lr(config, print)
    peak_lr = known or 1.0
    phases = make_phases(config, data.tokenizer.vocab_size, peak_lr)
    parts = phases[max(phases)]
    shapes = param_shapes(Model(parts.model.config))
    treatment = parts.treatment
    print(f"\n{'parameter':32} {'shape':>16} {'numbers':>12}  {'':7} {'lr x':>6} {'decay':5}  sharding")
    shown: dict[str, list[str]] = {}
    width = parts.model.config.width_multiplier
    for path, leaf in shapes.items():
        begins = treatment.begins[path]
        times = treatment.lr_multiplier[path] * rate_factor(path, config.optim.name, width)
        kind = "frozen" if not treatment.trained[path] else f"at {begins:g}" if begins else "trained"
        row = f"{list(leaf.shape)!s:>16} {leaf.size:>12,}  {kind:7} {times:>6.4g} "
        row += f"{'yes' if treatment.decayed[path] else 'no':5}  {tuple(param_spec(path, leaf.shape, parts.mesh))}"
        shown.setdefault(re.sub(r"block_\d+", "block_*", path) + "\0" + row, []).append(path)
    for key, paths in shown.items():  # layers that are alike share a line
        name, row = key.split("\0")
        if len(paths) > 1:
            first, last = (paths[i].split("/")[0].removeprefix("block_") for i in (0, -1))
            name = name.replace("block_*", f"block_{first}..{last}")
        print(f"{name if len(paths) > 1 else paths[0]:32} {row}")
    print(f"{'total':32} {'':>16} {count(shapes):>12,}\n")
    print(format_rates(treatment, peak_lr))
    batch = abstract_batch(config)
    receipt = make_receipt(
        config, parts.model, treatment, parts.state.params, parts.state.opt_state, parts.make_step, batch, hashes=False
    )
    print(format_receipt(add_phases(receipt, phases)))
    rows = config.data.batch_size * config.data.seq_len
    peak = f"peak lr {peak_lr:g}" if known else "peak lr by a range test; as multiples of it"
    print(f"\n{rows:,} tokens a step at most, {config.train.steps:,} steps, {peak}:")
    schedule = make_schedule(config.optim, peak_lr, config.train.steps)
    for step, what in turning_points(config.optim, config.train.steps).items():
        print(f"  step {step:>9,}  rate {float(schedule(step - 1)):<10.4g} {what}")
    print("Next:")
    print(f"  python launch.py --config={flags['config']}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)

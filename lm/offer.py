"""What of each block could be trained, and which config trains some of the blocks alone?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lm.config import Config, Table, adapters_only, last_layers
from lm.model.adapters import base_of
from lm.model.transformer import Model
from lm.params import block_name, match_table
from lm.parts import model_config, param_shapes


@dataclass(frozen=True)
class Offer:
    """What there is to choose from: the paths of each block that could train, and what trains outside of blocks anyway."""

    blocks: dict[int, tuple[str, ...]]
    outside: tuple[str, ...]
    whole: bool  # a block's paths are all that it has
    adapters: bool  # they are adapters, and nothing else

    def table(self, blocks: Sequence[int], layers: int) -> Table:
        """The `optim.train` table that trains these blocks, in terms of lm/config.py."""
        also = "|".join(re.escape(path) for path in self.outside)
        if self.adapters:
            return adapters_only(also)
        blocks = sorted(blocks)
        if self.whole and also and blocks == list(range(layers - len(blocks), layers)):
            return last_layers(len(blocks), layers, also)
        rows = []
        for block in blocks:
            name = block_name(block)
            inside = "|".join(re.escape(path.removeprefix(f"{name}/")) for path in self.blocks[block])
            rows.append((f"{name}/.*" if self.whole else f"{name}/({inside})", True))
        return (*rows, *([(also, True)] if also else []), (".*", False))

    def targets(self, blocks: Sequence[int]) -> tuple[str, ...]:
        """The `lora.targets` with adapters in these blocks alone; () where no adapters are chosen."""
        if not self.adapters:
            return ()
        matrices = {
            block: sorted({base_of(p).partition("/")[2] for p in self.blocks[block]}) for block in sorted(blocks)
        }
        return tuple(f"{block_name(block)}/({'|'.join(names)})" for block, names in matrices.items())

    def config(self, config: Config, blocks: Sequence[int]) -> Config:
        """The config that trains these blocks alone, and what is outside of blocks."""
        changed = replace(config, optim=replace(config.optim, train=self.table(blocks, config.model.layers)))
        targets = self.targets(blocks)
        return replace(changed, lora=replace(config.lora, targets=targets)) if targets else changed


def find_offer(config: Config, vocab_size: int) -> Offer:
    """What the config trains of any block is what each block offers; where it trains no block, all of it.

    Outside of blocks what the config trains is trained anyway; where it trains everything, the last norm and what is
    init.fresh, as `last_layers` does.
    """
    resolved = model_config(config, vocab_size)
    paths = list(param_shapes(Model(resolved)))
    trained = match_table(config.optim.train, paths, "optim.train")
    inside = {path: path.partition("/")[2] for path in paths if path.startswith("block_")}
    kinds = {kind for path, kind in inside.items() if trained[path]} or set(inside.values())
    blocks = {
        block: tuple(p for p, kind in inside.items() if kind in kinds and p.startswith(f"{block_name(block)}/"))
        for block in range(resolved.layers)
    }
    blocks = {block: found for block, found in blocks.items() if found}
    outside = tuple(path for path in paths if path not in inside and trained[path])
    if all(trained.values()):
        fresh = config.init.fresh
        outside = tuple(p for p in outside if p.startswith("norm_out/") or any(re.fullmatch(f, p) for f in fresh))
    whole = kinds == set(inside.values())
    return Offer(blocks, outside, whole, all(base_of(kind) != kind for kind in kinds))

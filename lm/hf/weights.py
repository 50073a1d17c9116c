"""How do the tensors of a folder become parameters on the devices that hold them, and parameters tensors again?

Tensor by tensor and shard by shard: no host holds the whole model, and none of it in float32 but its own shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lm.config import ModelConfig, UserError
from lm.hf.names import Row, plain_names, rows_of
from lm.hf.source import Foreign
from lm.hf.tensors import Tensors, open_folder
from lm.params import Params, layer_paths, to_host

HEADS = ("lm_head.weight", "embed_out.weight")
SHOWN = 40  # problems listed by name


class Source:
    """The parameters that a set of tensors holds, under our names; checked when made.

    Raises UserError that lists every tensor which is missing, left over or of another shape.
    """

    def __init__(
        self, tensors: Tensors, family: str, config: ModelConfig, shapes: Mapping[str, Any],
        fresh: frozenset[str] = frozenset(), place: str = "",
    ):  # fmt: skip
        """`shapes`: of all parameters, per layer; of those in `fresh` the tensors do not matter."""
        self.tensors, self.config, self.place = tensors, config, place
        self.shapes = {path: tuple(leaf.shape) for path, leaf in shapes.items()}
        rows = rows_of(family, config, self.shapes)
        self.rows: dict[str, list[Row]] = {}  # several of experts' matrices
        for row in rows:
            for path in row.ours:
                self.rows.setdefault(path, []).append(row)
        self.spared = {row.hf for row in rows if fresh.issuperset(row.ours)}
        self.names = plain_names(family, list(tensors.shapes))
        self._last = ("", np.empty(0))
        if "head" not in shapes and not config.tie_embeddings:  # a classifier has another
            self.names = {ours: name for ours, name in self.names.items() if ours not in HEADS}
        self._drop_tied_head()
        problems = self._problems()
        if problems:
            tensors.close()
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            shown = "\n  ".join(problems[:SHOWN] + more)
            raise UserError(f"the tensors do not fit the {family} model that config.json describes:\n  {shown}")

    def _drop_tied_head(self) -> None:
        """A head that is held beside the embedding it is tied to, must be equal to it."""
        head = next((name for name in HEADS if name in self.names), None)
        embed = self.names.get(self.rows["embed"][0].hf)
        if head and embed and self.config.tie_embeddings:
            ours, theirs = self.tensors.read(self.names[head]), self.tensors.read(embed)
            if ours.shape != theirs.shape or ours.tobytes() != theirs.tobytes():
                raise UserError(f"{self.names[head]} differs from {embed}, but config.json says tie_word_embeddings")
            del self.names[head]

    def _problems(self) -> list[str]:
        wanted = {row.hf: row for rows in self.rows.values() for row in rows if row.hf not in self.spared}
        problems = []
        for name, row in wanted.items():
            shape = row.hf_shape(self.shapes)
            if name not in self.names:
                problems.append(f"{name} {list(shape)}: missing")
                continue
            dtype, found = self.tensors.shapes[self.names[name]]
            if tuple(found) != shape:
                problems.append(f"{self.names[name]}: has shape {list(found)}, the model wants {list(shape)}")
            elif dtype.kind in "iub":
                problems.append(f"{self.names[name]}: holds {dtype.name}, not floating-point numbers")
        return problems + [
            f"{file}: no such parameter"
            for name, file in self.names.items()
            if name not in wanted and name not in self.spared
        ]

    def dtype_of(self, path: str) -> np.dtype:
        """The dtype that a parameter is stored in."""
        return self.tensors.shapes[self.names[self.rows[path][0].hf]][0]

    def _fill(self, out: np.ndarray, path: str, index: tuple[Any, ...]) -> None:
        """Puts a part of one layer's parameter into `out`, an expert at a time where there are several."""
        rows = self.rows[path]
        if rows[0].expert is None:
            out[...] = self._read(rows[0], path)[index]
        else:
            for place, row in enumerate(rows[index[0]]):
                out[place] = self._read(row, path)[index[1:]]

    def _read(self, row: Row, path: str) -> np.ndarray:
        """What a row holds of a parameter, in the stored dtype."""
        if self._last[0] != row.hf:  # each device asks for its part of the same tensor
            self._last = (row.hf, self.tensors.read(self.names[row.hf]))
        tensor = self._last[1]
        widths = [self.shapes[one][-1] for one in row.ours]
        return row.to_ours(tensor, widths, self.config.heads)[row.ours.index(path)]

    def load(self, abstract: Mapping[str, Any]) -> Params:
        """Returns the parameters that `abstract` names (ShapeDtypeStructs with shardings), stacks included."""
        return {path: self._load(path, leaf) for path, leaf in abstract.items()}

    def close(self) -> None:
        self.tensors.close()

    def _load(self, path: str, leaf: Any) -> jax.Array:
        names = layer_paths(path)

        def part(index: Any) -> np.ndarray:
            whole = np.empty([len(range(n)[i]) for n, i in zip(leaf.shape, index)], leaf.dtype)
            if names == [path]:
                self._fill(whole, path, index)
                return whole
            for place, layer in enumerate(range(len(names))[index[0]]):
                self._fill(whole[place], names[layer], index[1:])
            return whole

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def open_weights(found: Foreign, shapes: Mapping[str, Any], fresh: frozenset[str] = frozenset()) -> Source:
    """Opens the tensors of an open-weight model for a model of ours with the parameters `shapes`."""
    if found.place.is_dir():
        return Source(open_folder(found.place), found.family, found.model, shapes, fresh, str(found.place))
    from lm.hf.gguf_file import open_gguf

    return Source(open_gguf(found.place)[0], found.family, found.model, shapes, fresh, str(found.place))


def tensors_of(
    params: Mapping[str, Any], family: str, config: ModelConfig, dtype_of: Callable[[str], Any]
) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], Callable[[str], np.ndarray]]:
    """Returns the shapes of a family's tensors and a function that makes one of them from `params` (per-layer paths).

    `dtype_of(path)`: the dtype that a parameter is written in.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in params.items()}
    rows = {row.hf: row for row in rows_of(family, config, shapes)}
    dtypes = {name: np.dtype(dtype_of(row.ours[0])) for name, row in rows.items()}

    def make(name: str) -> np.ndarray:
        row: Row = rows[name]
        leaves = [params[path] if row.expert is None else params[path][row.expert] for path in row.ours]
        return row.to_hf([to_host(leaf).astype(dtypes[name]) for leaf in leaves], config.heads)

    return {name: (dtypes[name], row.hf_shape(shapes)) for name, row in rows.items()}, make

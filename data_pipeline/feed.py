"""How does Python run inside a tf.data graph, and how do batches come out of it?"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_pipeline.quiet_tf import import_tf
from data_pipeline.schema import UserError

Batch = dict[str, np.ndarray]


class Calls:
    """Python functions called from a graph; an exception in one is kept, since tf.data turns it into an own error."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def tensors(
        self,
        function: Callable[..., list[Any]],
        inputs: tuple[Any, ...],
        dtypes: list[Any],
        shapes: list[list[int | None]],
    ) -> tuple[Any, ...]:
        """Returns the tensors of `function(*inputs)`, which must depend on its inputs only: tf.data may call it again."""
        tf = import_tf()

        def kept(*arrays: np.ndarray) -> list[Any]:
            try:
                return function(*arrays)
            except Exception as error:
                self.error = self.error or error
                raise

        # autograph would rewrite the function; stateful=False lets tf.data save and restore positions around it
        kept = tf.autograph.experimental.do_not_convert(kept)
        outputs = tf.numpy_function(kept, inputs, [tf.as_dtype(d) for d in dtypes], stateful=False)
        for output, shape in zip(outputs, shapes):
            output.set_shape(shape)
        return tuple(outputs)


class TrainBatches(Iterator[Batch]):
    """A stream of batches, read ahead by tf.data. Close it when done: its threads call Python."""

    def __init__(self, dataset: Any, calls: Calls, ends: str = ""):
        """`ends`: why there may be no more batches."""
        self.calls, self.ends = calls, ends
        options = import_tf().data.Options()
        options.autotune.enabled = False  # nothing to tune here, and its thread can hold up the end for 30 s
        self.holder = [iter(dataset.with_options(options))]
        self.finalizer = weakref.finalize(self, self.holder.clear)  # at the latest when the interpreter ends

    def __next__(self) -> Batch:
        if not self.holder:
            raise StopIteration
        try:
            tensors = next(self.holder[0])
        except StopIteration:
            raise UserError(
                f"the training data have ended: {self.ends}. Train for fewer steps, or read the sources more often"
            ) from None
        except import_tf().errors.OpError:
            if self.calls.error:
                raise self.calls.error from None
            raise
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def state(self) -> bytes | None:
        """The position after the last batch returned; None where the step alone is the position."""
        return None

    def close(self) -> None:
        self.finalizer()

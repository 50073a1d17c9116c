"""What does one metadata key of a GGUF file hold, and which keys were not looked at?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lm.config import UserError
from lm.hf.gguf_header import GgufHeader

REQUIRED = object()
# Keys of an architecture that change nothing about its maths.
HARMLESS = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type"}
WAY_OUT = "import the Hugging Face folder of this model instead"


class Metadata:
    """The metadata of one architecture; remembers which keys were read."""

    def __init__(self, header: GgufHeader):
        self.header, self.path, self.tensors = header, header.path, header.tensors
        self.arch = self.text("general.architecture")
        self.read: set[str] = set()

    def text(self, key: str, default: str | None = None) -> str:
        value = self.header.fields.get(key, default)
        if not isinstance(value, str):
            raise UserError(f"{self.path}: the metadata key {key} is {value!r:.80}, expected a text; {WAY_OUT}")
        return value

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """Returns a number of this architecture; a list of one number for each layer counts where all are equal."""
        self.read.add(key)
        value = self.header.fields.get(f"{self.arch}.{key}", default)
        if value is REQUIRED:
            raise UserError(f"{self.path}: has no metadata key {self.arch}.{key}; {WAY_OUT}")
        if isinstance(value, np.ndarray) and value.ndim == 1 and len(set(value.tolist())) == 1:
            value = value.tolist()[0]
        if value is not default and (not isinstance(value, int | float) or not math.isfinite(value) or value < 0):
            raise UserError(
                f"{self.path}: the metadata key {self.arch}.{key} is {value!r:.80}, expected a number; {WAY_OUT}"
            )
        return value

    def count(self, key: str, default: Any = REQUIRED) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise UserError(
                f"{self.path}: the metadata key {self.arch}.{key} is {value!r:.80}, expected a count; {WAY_OUT}"
            )
        return value

    def array(self, key: str) -> np.ndarray | None:
        self.read.add(key)
        value = self.header.fields.get(f"{self.arch}.{key}")
        return value if isinstance(value, np.ndarray) else None

    def has(self, stem: str) -> bool:
        return f"{stem}.weight" in self.tensors or f"{stem}.bias" in self.tensors

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; {WAY_OUT}")

    def check_read(self) -> None:
        keys = {key.removeprefix(f"{self.arch}.") for key in self.header.fields if key.startswith(f"{self.arch}.")}
        if unknown := sorted(keys - self.read - HARMLESS):
            raise self.refuse(
                f"the metadata keys {', '.join(f'{self.arch}.{key}'[:80] for key in unknown[:8])} may change the maths and "
                "are not known here"
            )

"""How is TensorFlow imported late, without its start-up messages and without taking the accelerators from jax?"""

from __future__ import annotations

import functools
import os
from typing import Any


@functools.cache
def import_tf() -> Any:
    """Returns the tensorflow module, limited to the CPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault(
        "TF_ENABLE_ONEDNN_OPTS", "0"
    )  # it logs a line on import, and nothing here multiplies matrices
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf

"""Every default, as the ConfigDict that all other configs start from. It names no data: add `--config.data.path=FILE`."""

from __future__ import annotations

from typing import Any

import ml_collections

from data_pipeline.config import SourceConfig
from data_pipeline.schema import to_config_dict
from lm.config import Config


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(Config())


def source(**keys: Any) -> ml_collections.ConfigDict:
    """One entry of `data.sources`; the keys are those of `data_pipeline.config.SourceConfig`."""
    return to_config_dict(SourceConfig(**keys))

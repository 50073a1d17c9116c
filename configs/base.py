"""Every default, as the ConfigDict that all other configs start from. It names no data, so it does not run by itself."""

from __future__ import annotations

import ml_collections

from data_pipeline.schema import to_config_dict
from lm.config import Config


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(Config())

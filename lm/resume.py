"""Which keys may a resumed run change?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.schema import diff, flat_items
from lm.config import Config, ConfigError, defaults, to_json

# These decide what a run's numbers mean, so a resumed run may not change them. Where the data lies is no part of that:
# the fingerprint of what was read is compared.
RESUME_REFUSED = re.compile(
    r"model\.(?!scan|remat|attention).*|optim\.(name|train|frozen_dtype|pull_to_start)|train\.(seed|ema_decay|remember|stop_on|forget_weight)|init\..*|lora\..*|data\.(?!path$|sources\..*\.(path|tfds_dir)$).*"
)
RESUME_IGNORED = re.compile(
    r"data\.(cache_dir|on_bad|max_bad_fraction|buffer_bytes|clean\.count_languages|sources\..*\.(license|citation|url))"
    r"|debug\..*"
)


def check_resume(saved: Mapping[str, Any], config: Config, where: str) -> list[str]:
    """Returns one line per key that differs from the run in `where`; raises ConfigError if one of them may not.

    A key that did not exist when `saved` was written had its default.
    """
    before = dict(flat_items(defaults(saved.get("data", {}).get("sources", ())))) | dict(flat_items(saved))
    changes = [c for c in diff(before, to_json(config)) if not RESUME_IGNORED.fullmatch(c[0])]
    lines = [
        f"{key} {old!r} -> {new!r} ({'refused' if RESUME_REFUSED.fullmatch(key) else 'allowed'})"
        for key, old, new in changes
    ]
    if any(RESUME_REFUSED.fullmatch(key) for key, _, _ in changes):
        raise ConfigError(f"config differs from the run in {where}: {'; '.join(lines)}. Use another --workdir for it")
    return lines

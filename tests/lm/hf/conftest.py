"""Where are real models, which the repository does not hold?"""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def asset():
    """(*parts) -> that file or folder of LM_ASSETS; skips the test where there is none."""

    def find(*parts):
        root = os.environ.get("LM_ASSETS")
        if not root or not Path(root, *parts).exists():
            pytest.skip(f"LM_ASSETS names no folder with {'/'.join(parts)}")
        return Path(root, *parts)

    return find

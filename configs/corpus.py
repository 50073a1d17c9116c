"""Prepares text that nobody chose (pages, dumps, mail, reviews) in English and Chinese: every rule for pages on, near-duplicates out.

python -m data_pipeline.prepare --config=configs/corpus.py --config.data.path=GLOB --out=DIR --workers=4

Bad rows are skipped and counted, up to one in a hundred. Personal data: --config.data.clean.pii=mask. What went, and why:
DIR/report.html, DIR/ledger.jsonl, python -m data_pipeline.explain and what_if. One process: 1.6 (reviews of 280 bytes) to 2.8 MB a second (docs/data.md).
"""

from __future__ import annotations

import ml_collections

from configs import base
from data_pipeline.config import PAGE_RULES


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.data.clean.rules = PAGE_RULES
    c.data.clean.near_dedup = 0.8
    c.data.on_bad = "skip"
    c.data.tokenizer.vocab_size = 8192
    c.data.split.validation = 0.01
    c.data.split.test = 0.01
    return c

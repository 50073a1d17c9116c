"""The peer of benchmarks/prepare.py: datatrove's chain for web pages, as its FineWeb example has it, without what must be downloaded.

Read, repetition, Gopher, C4 and FineWeb quality filters, e-mail and IP addresses masked, MinHash near-duplicates out, token ids
written. Its language filter downloads a model, so it is left out here. Run by a Python that has datatrove, spacy, nltk, jieba and tokenizers:

    python benchmarks/peer_datatrove.py FILE.jsonl LANGUAGE TOKENIZER.json WORK_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers.jsonl import JsonlWriter


def main(file: str, language: str, tokenizer: str, work: str) -> None:
    path, config = Path(file), MinhashConfig()

    def run(name: str, *steps: object, tasks: int = 1) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=f"{work}/logs/{name}").run()

    run(
        "filters",
        JsonlReader(str(path.parent), glob_pattern=path.name),
        GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language),
        C4QualityFilter(filter_no_terminal_punct=False, language=language),
        FineWebQualityFilter(language=language),
        PIIFormatter(),
        JsonlWriter(f"{work}/clean", compression=None),
    )
    if not any(Path(work, "clean").glob("*")):  # nothing passed the filters
        return
    run(
        "signatures",
        JsonlReader(f"{work}/clean"),
        MinhashDedupSignature(f"{work}/signatures", config=config, language=language),
    )
    run(
        "buckets",
        MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config),
        tasks=config.num_buckets,
    )
    run("cluster", MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config))
    run(
        "tokens",
        JsonlReader(f"{work}/clean"),
        MinhashDedupFilter(f"{work}/remove"),
        DocumentTokenizer(f"{work}/tokens", tokenizer, local_working_dir=f"{work}/local", shuffle_documents=False),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

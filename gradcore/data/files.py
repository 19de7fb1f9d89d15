"""Read a file as bytes, never more than `MOST`, and decode a text."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import zlib
from typing import IO

from gradcore.data.errors import SourceError

__all__: list[str] = []  # for the package only

MOST = 2 * 10**9  # bytes of a file, and of what a compressed file holds
GZIP = b"\x1f\x8b"
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
NAMES = {"utf-8-sig": "utf-8", "ascii": "utf-8", "utf_8": "utf-8"}
COHERENT = 0.15  # at least this share of a language's most frequent letters, for an old encoding to count
# What texts in Windows-1252 do not have: signs within words, long runs of letters with accents, rare signs.
NOT_WESTERN = re.compile(
    "[²³¹ª](?=[a-z])|(?<=[a-z])[¿¡£§©®¹]|[À-ÖØ-öø-ÿ]{4,}"
    "|[^\\x00-\\x7fÀ-ÖØ-öø-þŠŽŒšžœ‘’“”„‚–—…•€£§°²³¹ªºµ·«»©®™‰½¼¾¿¡×±†\\xa0]"
)
KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


def read_bytes(path: str, known: tuple[str, ...]) -> bytes:
    """Read a regular file, unpacked if it is gzip; anything else is a SourceError.

    `known` are the names to offer when there is no such file.
    """
    try:
        kind = os.stat(path)
        for is_kind, what in KINDS:
            if is_kind(kind.st_mode):
                raise SourceError(f"{path}: is {what}; expected a file")
        _check_size(path, kind.st_size)
        with open(path, "rb") as file:
            raw = file.read(MOST + 1)  # the size of some files, such as those in /proc, is not known before
        _check_size(path, len(raw))
        raw = unpacked(path, raw)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file, and not one of the tasks {', '.join(known)}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path}: the gzip file is damaged ({error})") from None
    except SourceError:
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return raw


def _check_size(path: str, size: int) -> None:
    if size > MOST:
        raise SourceError(f"{path}: expected at most {MOST / 1e9:g} GB, got {size / 1e9:.3g} GB or more")


def unpacked(path: str, raw: bytes) -> bytes:
    """Return what a gzip file holds, and other bytes as they are."""
    if raw[:2] != GZIP:
        return raw
    with gzip.open(io.BytesIO(raw)) as packed:
        return read_at_most(packed, path)


def read_at_most(packed: IO[bytes] | gzip.GzipFile, path: str) -> bytes:
    """Read what a compressed file holds; a small file may unpack to any size."""
    parts, size = [], 0
    while part := packed.read(1 << 24):
        parts.append(part)
        size += len(part)
        _check_size(path, size)
    return b"".join(parts)


def decode(path: str, raw: bytes, encoding: str | None) -> tuple[str, str]:
    """Return a text with ``\\n`` at its line ends, and its encoding."""
    if encoding is None:
        encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None) or _wide(raw) or "utf-8"
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            if encoding.startswith("utf-16"):
                raise SourceError(f"{path}: begins as UTF-16 and is not ({error.reason}); give the encoding") from None
            text, encoding = _decode_old(path, raw, error)
    else:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            where = f"{path}, line {_line(raw, error.start)}"
            raise SourceError(
                f"{where}: byte 0x{raw[error.start]:02x} is not {encoding}; give another encoding"
            ) from None
        except (LookupError, ValueError):
            raise SourceError(f"encoding: expected a name such as utf-8 or cp1252, got {encoding!r}") from None
    text = text.removeprefix("\ufeff")
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        text = re.sub("\r+\n", "\n", text).replace("\r", "\n")  # \r\r\n comes of writing twice in text mode
    if not text.strip():
        raise SourceError(f"{path}: the file is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceError(f"{path}, line {line}: contains a NUL byte; expected a text file")
    return text, NAMES.get(encoding, encoding)


def _line(raw: bytes, place: int) -> int:
    return raw.count(b"\n", 0, place) + 1


def _wide(raw: bytes) -> str | None:
    """UTF-16 without a mark: in most texts every other byte is zero."""
    head = raw[: 1 << 12]
    if len(raw) % 2 or len(head) < 4 or b"\0" not in head:
        return None
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[first::2].count(0) > 0.7 * (len(head) // 2) and not head[1 - first :: 2].count(0):
            return name
    return None


def _decode_old(path: str, raw: bytes, error: UnicodeDecodeError) -> tuple[str, str]:
    """Decode a text of an older encoding: Windows-1252 if it makes sense so, else what its language tells."""
    try:
        text = raw.decode("cp1252")
        if not NOT_WESTERN.search(text):
            return text, "cp1252"
    except UnicodeDecodeError:
        pass
    where = f"{path}, line {_line(raw, error.start)}: byte 0x{raw[error.start]:02x} is not UTF-8"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise SourceError(
            f'{where}; give the encoding, such as cp1252, or have it found: pip install "gradcore[data]"'
        ) from None
    lines = [line for line in raw.split(b"\n") if not line.isascii()]
    best = from_bytes(b"\n".join(lines[:2000])).best()
    if best is not None and best.coherence > COHERENT:
        try:
            return raw.decode(best.encoding), best.encoding
        except UnicodeDecodeError:
            pass
    raise SourceError(f"{where}, and no other encoding is likely; expected a text file, or give the encoding")

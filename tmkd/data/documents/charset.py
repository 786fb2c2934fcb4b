"""Decode documents: in the charset that they declare, else as UTF-8. Single bytes that do not fit are replaced.

The order is that of browsers: a byte order mark, an XML declaration, a `meta` element (the HTML standard, "Determining
the character encoding"), or POD's `=encoding`; then UTF-16 where every second byte is 0. A document that declares none
is never read in another charset because of one bad byte: that would change all its other letters.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_MARKS = (  # UTF-32 before UTF-16, whose mark it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 8192  # bytes in which a declaration may stand; browsers read on from 1,024 where they find one later
_XML = re.compile(rb"""^\s*<\?xml\s[^>]*?encoding\s*=\s*["']\s*([\w.:-]+)""")
_META = re.compile(rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_POD = re.compile(rb"^=encoding[ \t]+(\S+)", re.MULTILINE)
_AS_BROWSERS = {  # what the HTML standard reads under these names: a larger charset of the same letters
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_NEARLY_ALL = 0.9
_NO_CHARSETS = frozenset({"utf-7", "idna", "punycode", "unicode-escape", "raw-unicode-escape"})


@dataclass(frozen=True)
class Decoded:
    """A document's text.

    Attributes:
        text: the text, without a byte order mark.
        charset: the name of the charset that it was read in.
        replaced: how many places hold bytes that do not fit; each is a replacement character (U+FFFD) in the text.
        first: the place of the first bad byte in the data, if there is one.
    """

    text: str
    charset: str
    replaced: int = 0
    first: int = 0

    def line(self, data: bytes) -> int:
        """The number of the line with the first bad byte, from 1."""
        return data.count(b"\n", 0, self.first) + 1


def decode_text(data: bytes) -> Decoded:
    """Decode a text that can declare a charset only by a byte order mark."""
    return _decode(data, b"")


def decode_html(data: bytes) -> Decoded:
    """Decode an HTML document. A declared charset that does not exist counts as none."""
    head = data[:_HEAD]
    found = _XML.match(head) or _META.search(_COMMENT.sub(b"", head))
    return _decode(data, found.group(1) if found else b"")


def decode_pod(data: bytes) -> Decoded:
    """Decode POD. Without `=encoding` it is UTF-8, or CP1252 if none of its bytes is (perlpodspec)."""
    found = _POD.search(data)
    decoded = _decode(data, found.group(1) if found else b"")
    if not found and decoded.replaced and data.decode("utf-8", "ignore").isascii():
        return _decode(data, b"cp1252")
    return decoded


def _decode(data: bytes, declared: bytes) -> Decoded:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _replaced(data, len(mark), name)
    return _replaced(data, 0, _charset(declared.decode("ascii", "replace")) if declared else _undeclared(data))


def _undeclared(data: bytes) -> str:
    """UTF-16 if nearly every second byte is 0, as in text of Latin letters, and no others are; else UTF-8."""
    pairs = len(data) // 2
    zeros = {name: data[first::2].count(0) for name, first in (("utf-16-be", 0), ("utf-16-le", 1))}
    few, many = sorted(zeros.values())
    if pairs and many >= _NEARLY_ALL * pairs and few <= (1 - _NEARLY_ALL) * pairs:
        return max(zeros, key=lambda name: zeros[name])
    return "utf-8"


def _charset(declared: str) -> str:
    """Python's name for the charset that a browser reads under a declared name; utf-8 if there is no such charset."""
    known = re.sub(r"^x-|-i$", "", re.sub(r"^windows-(?=\d)", "cp", declared.lower()))
    try:
        name = codecs.lookup(known).name
        b"a".decode(name)  # not in UTF-16: the declaration could not have been found then
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if name in _NO_CHARSETS else _AS_BROWSERS.get(name, name)


def _replaced(data: bytes, start: int, charset: str) -> Decoded:
    data_of_text = data[start:]
    try:
        return Decoded(data_of_text.decode(charset), charset)
    except UnicodeDecodeError as error:
        text = data_of_text.decode(charset, "replace")
        was_there = data_of_text.decode(charset, "ignore").count("\ufffd")
        return Decoded(text, charset, text.count("\ufffd") - was_there, start + error.start)

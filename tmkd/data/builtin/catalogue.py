"""The documentation packages of the built-in data set: which of their files are read, and which are FAQs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import DataError, needs_extra
from tmkd.data.documents.charset import decode_pod
from tmkd.data.documents.pod import parse_pod
from tmkd.data.documents.sections import Section, bare_heading


@dataclass(frozen=True)
class Source:
    """A documentation package.

    Attributes:
        name: the package's name without a version.
        pattern: matches the names of the real packages, of which the one with the highest version is taken.
        files: glob patterns of the files to read, below the unpacked package.
        skip: matches paths to leave out: indexes, change logs, licences, tables of contents.
        faq: matches the paths of FAQ files, whose headings are questions; None: the package has no FAQ.
    """

    name: str
    pattern: str
    files: tuple[str, ...]
    skip: str | None = None
    faq: str | None = None

    def paths(self, root: Path) -> list[Path]:
        """The files to read, sorted, each once: links are resolved to the files that they lead to."""
        base = root.resolve()
        globbed = (path.resolve() for glob in self.files for path in base.glob(glob) if path.is_file())
        found = {root / path.relative_to(base) for path in globbed if path.is_relative_to(base)}
        names = ((path.relative_to(root).as_posix(), path) for path in found)
        return [path for name, path in sorted(names) if self.skip is None or not re.search(self.skip, name)]

    def is_faq(self, path: Path) -> bool:
        """Whether the file is a FAQ, so that its headings are questions."""
        return self.faq is not None and re.search(self.faq, path.as_posix()) is not None


SOURCES = (
    Source(
        "perl-doc",
        r"perl-doc",
        ("usr/share/perl/*/pod/*.pod",),
        skip=r"delta\.pod$|/perl(toc|faq|hist|cn|jp|ko|tw|artistic|gpl|uniprops|bug|modlib|glossary|api|intern)\.pod$",
        faq=r"/perl(faq\d|unifaq)\.pod$",
    ),
    Source(
        "python3-doc",
        r"python3\.\d+-doc",
        tuple(
            f"usr/share/doc/python3*/html/{part}/*.html"
            for part in (
                "faq",
                "howto",
                "library",
                "tutorial",
                "reference",
                "using",
                "c-api",
                "extending",
                "installing",
            )
        ),
        skip=r"/index\.html$",
        faq=r"/faq/[^/]+\.html$",
    ),
    Source(
        "debian-faq",
        r"debian-faq",
        ("usr/share/doc/debian/FAQ/*.en.html", "usr/share/doc/debian-faq/**/*.en.html"),
        skip=r"/index\.",
        faq=r"\.html$",
    ),
    Source(
        "git-doc",
        r"git-doc",
        ("usr/share/doc/git-doc/*.html", "usr/share/doc/git-doc/howto/*.html"),
        skip=r"/(howto-index|index|everyday|gitglossary)\.html$",
        faq=r"/gitfaq\.html$",
    ),
    Source(
        "sqlite3-doc",
        r"sqlite3-doc",
        (
            "usr/share/doc/sqlite3/*.html",
            "usr/share/doc/sqlite3-doc/*.html",
            "usr/share/doc/sqlite3*/c3ref/*.html",
            "usr/share/doc/sqlite3*/session/*.html",
        ),
        skip=r"/(doc_|toc|keyword_index|changes|chronology|oldnews|news|pressrelease|sitemap|books|crew|capi3ref|"
        r"consortium|copyright|index|search|hp1|famous|requirements|syntaxdiagrams|docs|session\.html|funclist|objlist|constlist)",
        faq=r"/faq\.html$",
    ),
    Source(
        "apache2-doc",
        r"apache2-doc",
        ("usr/share/doc/apache2-doc/manual/en/**/*.html",),
        skip=r"/(sitemap|index|directives|directive-dict|quickreference|license|relevant_standards|module-dict)\.html$",
        faq=r"/(ssl_faq|faq/[^/]+)\.html$",
    ),
    Source(
        "harden-doc",
        r"harden-doc",
        ("usr/share/doc/harden-doc/html/en-US/*.html", "usr/share/doc/harden-doc/html/*.en.html"),
        skip=r"/(changelog_history|index|credits)\.",
        faq=r"/(ch12[^/]*|debian-sec-team-faq)\.html$",
    ),
    Source(
        "postgresql-doc",
        r"postgresql-doc-\d+",
        ("usr/share/doc/postgresql-doc-*/html/*.html",),
        skip=r"/(release|bookindex|index|biblio|acronyms|features|unsupported-features|contrib-prog|legalnotice|sql-keywords)",
    ),
    Source(
        "debian-handbook",
        r"debian-handbook",
        ("usr/share/doc/debian-handbook/html/en-US/*.html",),
        skip=r"/(index|foreword|preface|sect\.acknowledgments)\.html$",
    ),
    Source(
        "debian-reference-en",
        r"debian-reference-en",
        ("usr/share/debian-reference/*.en.html", "usr/share/doc/debian-reference*/**/*.en.html"),
        skip=r"/(index|apa|pr01)\.",
    ),
    Source(
        "installation-guide-amd64",
        r"installation-guide-amd64",
        ("usr/share/doc/installation-guide-amd64/en/*.html",),
        skip=r"/(index|pr01|ap[ef][^/]*)\.html$",
    ),
)


def source(name: str) -> Source:
    """The source with this name, or whose pattern matches the name (such as python3.11-doc).

    Raises:
        DataError: there is no such source.
    """
    for candidate in SOURCES:
        if name == candidate.name or re.fullmatch(candidate.pattern, name):
            return candidate
    raise DataError(f"no documentation package {name!r}; there are: {', '.join(one.name for one in SOURCES)}")


def parse_file(path: Path) -> list[Section]:
    """Sections of an HTML or POD file. Every number before a heading goes: in these packages it is a section's."""
    data = path.read_bytes()
    if path.suffix != ".pod":
        with needs_extra("qa"):
            from tmkd.data.documents.html import parse_html
        return parse_html(data, built_in=True)
    return parse_pod(decode_pod(data).text, bare_heading)

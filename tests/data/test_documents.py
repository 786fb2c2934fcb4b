"""Documents to passages, and their search: parsing of what the usual generators write, cutting, BM25, fetching."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tmkd.core.errors import DataError, FetchError
from tmkd.data.builtin.catalogue import SOURCES, source
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.html import parse_html
from tmkd.data.documents.passages import MOST_WORDS, Passage, cut, sentences, size
from tmkd.data.documents.pod import parse_pod, render
from tmkd.data.documents.sections import Block, Section, clean_heading
from tmkd.data.documents.text import contains, jaccard, text_hash, tokens

SPHINX = """<html><head><title>Programming FAQ &#8212; Python 3.11.2 documentation</title></head><body>
<div class="related"><ul><li><a href="i.html">index</a></li></ul></div>
<div class="body" role="main"><section><h1><a href="#t">Programming FAQ</a><a class="headerlink" href="#p">¶</a></h1>
<nav class="contents"><p>Contents</p></nav>
<section><h2>Core Language<a class="headerlink" href="#c">¶</a></h2>
<section><h3>Why did <code>x</code> change?</h3><p>Because of <em>names</em>:</p>
<pre>    x = []
    if x:
        y = x
</pre><p>Both are one list.</p>
<dl><dt>list.copy()</dt><dd><p>A shallow copy.</p></dd></dl></section></section></section></div>
<div class="footer">Copyright</div></body></html>"""

DOCBOOK = """<html><body><div class="navheader">Prev Next</div><div class="chapter">
<h1 class="title">Chapter 5. Software</h1><div class="toc"><dl><dt><a href="#a">5.1. Types</a></dt></dl></div>
<div class="section"><h2 class="title"><a id="a"></a>5.1. Who wrote it?</h2><p>Many people.</p>
<div class="note"><h3 class="title">Note</h3><p>See the copyright file.</p></div>
<table><tr><th>Name</th><th>Use</th></tr><tr><td>apt</td><td>packages</td></tr></table>
<div class="sidebar"><p class="title"><strong><em>CULTURE</em> Mailing lists</strong></p><p>There are some.</p></div>
<p>And more people.</p></div></div><div class="navfooter">Prev</div></body></html>"""

FAQ_PAGE = """<html><body><div class="nosearch">Home</div><h2>Questions</h2>
<ol><li><a href="#q1">How do I count?</a></li><li><a href="#q2">Is it safe?</a></li></ol>
<a name="q1"></a><p><b>(1) How do I count?</b></p><blockquote><p>Use COUNT.</p></blockquote>
<dl><dt>Is it safe?</dt><dd><p>Yes.</p></dd><dt>-v</dt><dt>--verbose</dt><dd>Says more.</dd></dl></body></html>"""


def _flat(sections: list[Section]) -> list[tuple[str, list[str]]]:
    return [(section.heading, [block.text for block in section.blocks]) for section in sections]


def test_sphinx_page_keeps_code_and_drops_navigation() -> None:
    sections = parse_html(SPHINX.encode())
    answer = next(section for section in sections if section.heading == "Why did x change?")
    assert answer.path == ("Programming FAQ", "Core Language")
    assert answer.title == "Programming FAQ"
    assert [block.text for block in answer.blocks] == [
        "Because of names:",
        "x = []\nif x:\n    y = x",
        "Both are one list.",
        "list.copy(): A shallow copy.",
    ]
    assert [block.code for block in answer.blocks] == [False, True, False, False]
    everything = " ".join(block.text for section in sections for block in section.blocks)
    for dropped in ("Contents", "index", "Copyright", "¶"):
        assert dropped not in everything


def test_docbook_page_with_note_table_and_box() -> None:
    sections = _flat(parse_html(DOCBOOK.encode()))
    assert sections == [
        ("Software", []),
        ("Who wrote it?", ["Many people.", "See the copyright file.", "Name | Use\napt | packages"]),
        ("Mailing lists", ["There are some."]),
        ("Who wrote it?", ["And more people."]),
    ]


def test_questions_that_are_not_heading_elements() -> None:
    sections = _flat(parse_html(FAQ_PAGE.encode()))
    assert sections == [
        ("Questions", []),
        ("How do I count?", ["Use COUNT."]),
        ("Is it safe?", ["Yes.", "-v, --verbose: Says more."]),
    ]


@pytest.mark.parametrize("data", [b"", b"   ", b"<html></html>", b"<!-- only a comment -->"])
def test_empty_html_gives_no_text(data: bytes) -> None:
    assert parse_html(data) == []


def test_bytes_that_are_no_html_are_one_block() -> None:
    assert _flat(parse_html(b"\xff\xfe\x00")) == [("", ["\xff\xfe\ufffd"])]


def test_latin1_page_is_decoded_as_it_declares() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>caf\xe9 au lait</p></body></html>'
    assert parse_html(page.encode("latin-1"))[0].blocks[0].text == "café au lait"


def test_pod_sections_items_and_code() -> None:
    text = """use strict;

=head1 NAME

perlfaq4 - Data

=head2 Why is C<int()> B<broken>?

(see L<perlop/"Floats"> and L<the FAQ|perlfaq>) It is E<lt>fineE<gt>.

    print int(0.6/0.2-2);

    exit;

=over 4

=item *

First.

=item -e FILE

Tests it.

=back

=begin html

<b>no</b>

=end html

=cut

sub code { 1 }
"""
    sections = parse_pod(text)
    assert sections[0].title == "perlfaq4 - Data"
    answer = sections[-1]
    assert answer.heading == "Why is int() broken?"
    assert [block.text for block in answer.blocks] == [
        '(see "Floats" in perlop and the FAQ) It is <fine>.',
        "print int(0.6/0.2-2);\n\nexit;",
        "First.",
        "-e FILE: Tests it.",
    ]


@pytest.mark.parametrize(
    ("pod", "plain"),
    [
        ("C<< $a <=> $b >>", "$a <=> $b"),
        ("B<bold I<both>>", "bold both"),
        ("X<index>text", "text"),
        ("E<0x263a> E<228> E<bogus>", "☺ ä bogus"),
        ("L<http://a.example/b>", "http://a.example/b"),
        ("C<unclosed", "unclosed"),
        ("a < b and A<B", "a < b and B"),
    ],
)
def test_pod_formatting_codes(pod: str, plain: str) -> None:
    assert render(pod) == plain


def test_sentences_end_where_sentences_end() -> None:
    text = 'Use e.g. apt. It asks "Really?" Then version 3.11.2 comes (see J. Doe). Done!'
    assert sentences(text) == ["Use e.g. apt.", 'It asks "Really?"', "Then version 3.11.2 comes (see J. Doe).", "Done!"]


def test_passages_are_cut_at_sentence_ends_near_the_target() -> None:
    sentence = "This sentence has exactly nine words in its body. "
    pieces = [text for text, _ in cut([Block((sentence * 40).strip())])]
    assert all(55 <= size(piece) <= MOST_WORDS and piece.endswith("body.") for piece in pieces)
    assert " ".join(pieces) == (sentence * 40).strip()


def test_code_stays_with_the_line_that_announces_it_and_keeps_its_lines() -> None:
    words = "One more plain sentence of eight words here. " * 8
    code = "\n".join(f"    line_{n} = {n}" for n in range(6))
    pieces = cut([Block(words.strip()), Block("It goes like this:"), Block(code, code=True)])
    (text, share) = next(piece for piece in pieces if "like this:" in piece[0])
    assert f"like this:\n{code}" in text
    assert 0 < share < 1


def test_a_sentence_longer_than_a_passage_is_cut_between_words() -> None:
    pieces = [text for text, _ in cut([Block("word " * 400)])]
    assert all(size(piece) <= MOST_WORDS for piece in pieces)
    assert sum(len(piece.split()) for piece in pieces) == 400
    assert cut([]) == []


@pytest.mark.parametrize(
    ("heading", "clean"),
    [
        ("5.1.2. The kernel¶", "The kernel"),
        ("Chapter 5. Software", "Software"),
        ("(14) Is it  safe?", "Is it safe?"),
        ("2 phases of commit", "2 phases of commit"),
        ("A. Appendix", "A. Appendix"),
        ("A.1. Appendix", "Appendix"),
    ],
)
def test_headings_lose_their_numbers(heading: str, clean: str) -> None:
    assert clean_heading(heading) == clean


def test_same_text_in_another_layout_is_the_same() -> None:
    assert text_hash("Use `apt`,\n  twice!") == text_hash(" Use `apt`, twice!")
    assert text_hash("Use `apt`, twice!") != text_hash("use apt twice")
    assert text_hash("!!!") != text_hash("???")
    assert contains("Well, how do I COUNT?", "How do I count")
    assert not contains("however do I count", "how do I count")
    assert not contains("anything", "?!")
    assert jaccard(tokens("a b c"), tokens("b c d")) == 0.5
    assert jaccard(tokens(""), tokens("")) == 0.0


def _passages(*texts: str) -> list[Passage]:
    return [Passage(text_hash(text), text, "", (), "here", str(place)) for place, text in enumerate(texts)]


def test_bm25_ranks_and_breaks_ties_by_number() -> None:
    index = PassageIndex.build(_passages("sorting arrays in perl", "cooking rice", "perl hashes", "perl hashes"))
    assert [number for number, _ in index.search("how do I sort an array?", 5)] == [0]
    hits = index.search("hash", 3)
    assert [number for number, _ in hits] == [2, 3]
    assert hits[0][1] == pytest.approx(hits[1][1])
    assert [number for number, _ in index.search("hash", 1)] == [2]


@pytest.mark.parametrize(
    "query",
    ['"unclosed', "a AND", "NOT (", "text:perl^9", "[a TO b]", "/re/", "\\", "perl~2", "+-*", "IN [", "'", "🦀 perl"],
)
def test_query_syntax_means_nothing(query: str) -> None:
    index = PassageIndex.build(_passages("perl text re", "rice"))
    hits = index.search(query, 2)
    assert [number for number, _ in hits] in ([], [0])


def test_empty_query_and_index() -> None:
    assert PassageIndex.build([]).search("perl", 3) == []
    index = PassageIndex.build(_passages("the who", "rice"))
    assert index.search("", 3) == []
    assert index.search("rice", 0) == []
    assert [number for number, _ in index.search("who", 3)] == [0]  # nothing but function words: they count then


def test_sources_are_found_by_versioned_name() -> None:
    assert source("python3.13-doc").name == "python3-doc"
    assert source("postgresql-doc-17").name == "postgresql-doc"
    with pytest.raises(DataError, match=r"perl-docs.*perl-doc"):
        source("perl-docs")
    assert len({one.name for one in SOURCES}) == len(SOURCES)


def test_no_apt_names_the_other_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"no apt-get on this machine.*hub data set.*files of your own"):
        fetch()


def test_packages_without_questions_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="debian-handbook has questions; name one of: perl-doc"):
        fetch(["debian-handbook"])


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
def test_package_lists_of_our_own_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lists" / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path / "lists"}";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    (package,) = fetch(["debian-faq"])
    assert package.files()
    assert package.version in package.root.name
    assert not list(package.root.rglob("*.gz"))  # only what is read is kept
    monkeypatch.setenv("PATH", "")
    assert fetch(["debian-faq"]) == [package]  # from the cache, apt or no apt

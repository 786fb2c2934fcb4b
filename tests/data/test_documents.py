"""Documents to passages, and their search: parsing of what the usual generators write, cutting, BM25, fetching."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tmkd.core.errors import DataError, FetchError
from tmkd.data.builtin.catalogue import SOURCES, parse_file, source
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.charset import decode_html, decode_pod, decode_text
from tmkd.data.documents.html import parse_html
from tmkd.data.documents.markdown import parse_markdown
from tmkd.data.documents.passages import MOST_WORDS, Passage, cut, size
from tmkd.data.documents.pod import parse_pod, render
from tmkd.data.documents.sections import Block, Section, clean_heading
from tmkd.data.documents.sentences import sentences
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
<div class="sidebar"><p class="title"><strong><em>CULTURE</em> Mailing lists</strong></p>Few.
<p>There are some.</p></div>
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
        ("Mailing lists", ["Few.", "There are some."]),
        ("Who wrote it?", ["And more people."]),
    ]


def test_a_note_loses_its_label_and_keeps_its_headings_and_columns() -> None:
    page = """<h1>Disks</h1><div class=note><h3>Note:</h3>First of all,<h2>Back up first</h2><p>Copy it.</p>
        <table><tr><th>Warning</th><td>Slow disks.</td></tr></table>
        <table><tr><th>Disk</th><th>Size</th></tr><tr><td>a</td><td>2<sup>40</sup></td></tr></table></div>
        <p>Mount it.</p>"""
    assert [(one.path, *_flat([one])[0]) for one in parse_html(page.encode())] == [
        ((), "Disks", ["First of all,"]),
        (("Disks",), "Back up first", ["Copy it.", "Slow disks.", "Disk | Size\na | 2^40"]),
        ((), "Disks", ["Mount it."]),
    ]


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("<p>2<sup>32</sup> is 10<sup> -3</sup> <i>5</i><sup><b>2</b></sup></p>", ["2^32 is 10^-3 5^2"]),
        ("<p>the 1<sup>st</sup> of m<sup>2</sup></p>", ["the 1st of m2"]),
        ("<pre>x = 2<sup>8</sup></pre>", ["x = 2^8"]),
        ("<my-card>A.</my-card><my-card>B.</my-card>", ["A.", "B."]),
        ("<p>Wait <x-time>3 days</x-time> or <b>use</b><x-key>F1</x-key></p>", ["Wait 3 days or useF1"]),
    ],
)
def test_powers_and_custom_elements(page: str, blocks: list[str]) -> None:
    assert _blocks(page) == blocks


def test_questions_that_are_not_heading_elements() -> None:
    sections = _flat(parse_html(FAQ_PAGE.encode()))
    assert sections == [
        ("Questions", []),
        ("How do I count?", ["Use COUNT."]),
        ("Is it safe?", ["Yes.", "-v, --verbose: Says more."]),
    ]


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        (
            "<dl><dt>A<dd><table><tr><td>x<td>y</table></dd><dt>B<dd>b</dl><p>end</p>",
            ["A", "x | y", "B: b", "end"],
        ),
        ("<dl><dt>A<dd></dd><dt>B<dd>b</dl>", ["A", "B: b"]),
        ("<dl><dt>A<dd>a<dt>B</dt><dt>C</dt></dl><p>end</p>", ["A: a", "B, C", "end"]),
        ("<dt>A", ["A"]),
        ("<dl><dt>A<dd><h3>B</h3>b</dl>", ["A", "b"]),
        ("<dl><dt>A</dt><dt>B</dt><dd><table><tr><td>b</table></dl>", ["A, B: b"]),
    ],
)
def test_a_term_is_never_joined_with_the_definition_of_another(page: str, blocks: list[str]) -> None:
    assert _blocks(page) == blocks
    assert [block for _, _, found in _markdown(f"<div>{page}</div>") for block in found] == blocks


def test_a_question_on_a_button_is_a_heading() -> None:
    page = """<h1>FAQ</h1><h2><button>How do I reset my password?<svg><title>Open</title></svg></button></h2>
        <div>Ask the desk.</div><h2><button>Copy link</button>Is it safe?</h2><div>Yes.</div>
        <dl><dt><button>When is it open?</button></dt><dd>On Mondays.</dd></dl>"""
    assert _flat(parse_html(page.encode())) == [
        ("FAQ", []),
        ("How do I reset my password?", ["Ask the desk."]),
        ("Is it safe?", ["Yes."]),
        ("When is it open?", ["On Mondays."]),
    ]


@pytest.mark.parametrize("data", [b"", b"   ", b"<html></html>", b"<!-- only a comment -->"])
def test_empty_html_gives_no_text(data: bytes) -> None:
    assert parse_html(data) == []


def test_bytes_that_are_no_html_are_one_block() -> None:
    assert _flat(parse_html(b"\xff\xfe\x00")) == [("", ["\ufffd"])]  # half a letter of UTF-16, as its mark says


def test_latin1_page_is_decoded_as_it_declares() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>caf\xe9 au lait</p></body></html>'
    assert parse_html(page.encode("latin-1"))[0].blocks[0].text == "café au lait"


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("<p>first line<br>second line</p>", ["first line second line"]),
        ("<pre>a<br>b", ["a\nb"]),
        ("<pre><div>a</div>\n<div>b</div>\n\n<div>c</div></pre>", ["a\nb\n\nc"]),
        ("Hello<div class=toc>x</div>World", ["Hello", "World"]),
        ("<dl><dt>a<br>b</dt><dd>c</dd></dl>", ["a b: c"]),
        ("un<b>believ</b>able", ["unbelievable"]),
    ],
)
def test_a_line_break_or_the_edge_of_a_block_parts_words(page: str, blocks: list[str]) -> None:
    assert _blocks(page) == blocks


def _blocks(page: str) -> list[str]:
    return [block.text for section in parse_html(page.encode()) for block in section.blocks]


def test_paragraphs_in_a_cell_are_apart_and_an_empty_cell_keeps_its_place() -> None:
    assert _blocks("<table><tr><td><p>one</p><p>two</p></td><td>x</td></tr></table>") == ["one two | x"]
    rows = (
        "<tr><th></th><th>A</th><th>B</th></tr><tr><td>r</td><td></td><td>1</td></tr><tr><td></td><td></td><td>2</td>"
    )
    assert _blocks(f"<table>{rows}</tr></table>") == ["| A | B\nr |  | 1\n|  | 2"]
    assert _blocks("<table><tr><td></td><td>prose in a frame</td></tr></table>") == ["prose in a frame"]


@pytest.mark.parametrize(
    "code",
    [
        "<pre><span class=linenos>1</span>a\n<span class=linenos>2</span>b</pre>",
        "<pre>a\nb<button>Copy</button><script>x()</script><style>y {}</style></pre>",
        "<pre class='line-numbers'><code>a\nb<span class='line-numbers-rows'><span></span></span></code></pre>",
        "<table class=highlighttable><tr><td class=linenos><div class=linenodiv><pre>1\n2</pre></div></td>"
        "<td class=code><div><pre>a\nb</pre></div></td></tr></table>",
        "<table class=rouge-table><tr><td class='gutter gl'><pre class=lineno>1\n2\n</pre></td>"
        "<td class=code><pre>a\nb</pre></td></tr></table>",
        "<table class=lntable><tr><td class=lntd><pre><span class=lnt>1\n</span><span class=lnt>2\n</span></pre></td>"
        "<td class=lntd><pre>a\nb</pre></td></tr></table>",
    ],
)
def test_line_numbers_buttons_scripts_and_styles_are_no_code(code: str) -> None:
    assert _blocks(f"<p>Run:</p>{code}") == ["Run:", "a\nb"]


def test_code_with_the_class_of_line_numbers_is_kept() -> None:
    assert _blocks("<pre class='line-numbers'>x = 12\ny</pre>") == ["x = 12\ny"]


def test_a_page_within_a_form_is_kept_and_a_search_form_is_not() -> None:
    assert _blocks("<form><h1>T</h1><p>asp</p><form><label>Search</label></form></form>") == ["asp"]
    assert _blocks("<form><label>Search</label></form><p>text</p>") == ["text"]


@pytest.mark.parametrize(
    ("page", "blocks"),
    [
        ("<body><div role=main> </div><p>beside it</p></body>", ["beside it"]),
        ("<body><div id=content><nav>Home</nav></div><p>beside it</p></body>", ["beside it"]),
        (
            "<body><div role=main>one<div role=main>two</div></div><p>not this</p><div role=main>three</div></body>",
            ["one", "two", "three"],
        ),
        ("<body><div class='top wide'><p>all of it</p></div></body>", ["all of it"]),
        ("<body><div id=title><p>all of it</p></div><div class=toc>Contents</div></body>", ["all of it"]),
        ("<body><form><p>all of it</p><button>Send</button></form></body>", ["all of it"]),
        ("<body><div class=contents><p>See <a href=a>this page</a> <a href=b>and that</a></p></div></body>", []),
        ("<body><div class=top>Home</div><p>the text</p></body>", ["the text"]),
    ],
)
def test_a_page_whose_main_element_has_no_text_is_read_elsewhere(page: str, blocks: list[str]) -> None:
    assert _blocks(page) == blocks


DEEP = "<div>" * 3000


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a<button>Copy</button> b<script>s()</script><style>c {}</style>", "a b"),
        ("a<br>b<p>c</p>d un<b>believ</b>able", "a b c d unbelievable"),
        ("<span class=linenos>1</span>a <span class=linenos>all</span>", "a all"),
        ("<pre class=line-numbers>12 x<button>c</pre>d", "12 xc d"),
        ("caf\xe9", "caf\xe9"),
        ("2<sup>32</sup> m<sup>2</sup> <my-card>A.</my-card><my-card>B.</my-card>", "2^32 m2 A. B."),
    ],
)
def test_deep_pages_are_read_by_the_same_rules(markup: str, text: str) -> None:
    page = f"<meta charset=latin1>{DEEP}{markup}"
    assert [block.text for section in parse_html(page.encode("latin-1")) for block in section.blocks] == [text]


@pytest.mark.parametrize(
    ("data", "text", "replaced"),
    [
        ("<p>é</p>".encode() + b"caf\xe9", "<p>é</p>caf\ufffd", 1),
        (b"<meta charset=utf-8>" + "é".encode() + b"\xe9", "<meta charset=utf-8>é\ufffd", 1),
        (b"<meta http-equiv=x content='text/html; charset=iso-8859-1'>\x96", None, 0),
        (b"<?xml version='1.0' encoding='koi8-r'?><meta charset=latin1>\xc1", None, 0),
        (b"<!-- <meta charset=latin1> -->" + "é".encode(), "<!-- <meta charset=latin1> -->é", 0),
        (b"<meta charset=hex>" + "é".encode(), "<meta charset=hex>é", 0),
        (b"<meta charset=utf-16>" + "é".encode(), "<meta charset=utf-16>é", 0),
        (b"\xef\xbb\xbf<meta charset=latin1>" + "é".encode(), "<meta charset=latin1>é", 0),
        ("<p>é".encode("utf-16"), "<p>é", 0),
        ("kept \ufffd".encode() + b"\xff\xff", "kept \ufffd\ufffd\ufffd", 2),
    ],
)
def test_charset_as_declared_else_utf8_with_single_bytes_replaced(data: bytes, text: str | None, replaced: int) -> None:
    decoded = decode_html(data)
    assert decoded.replaced == replaced
    assert decoded.text == text if text is not None else decoded.text[-1] in ("–", "а")


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_known_by_its_zeros(charset: str) -> None:
    text = "<p>Ein “Löwe” schläft.</p>\r\n"
    assert decode_text(text.encode(charset)).text == text
    assert decode_html(text.encode(charset)).text == text
    assert decode_text(b"\0\0\0a" * 9).charset == decode_text(b"a\0b" * 9).charset == "utf-8"


def test_place_of_the_first_bad_byte() -> None:
    data = b"\xef\xbb\xbfone\ntwo\n\xe9"
    decoded = decode_text(data)
    assert (decoded.line(data), data[decoded.first], decoded.text) == (3, 0xE9, "one\ntwo\n\ufffd")


def test_pod_is_read_as_declared_else_as_utf8_else_as_perl_does() -> None:
    assert decode_pod(b"=encoding latin1\n\n\xc3\xa9").text.endswith("Ã©")
    assert decode_pod(b"=head1 caf\xe9").text == "=head1 café"
    mixed = decode_pod("=head1 é".encode() + b"\xe9")
    assert (mixed.text, mixed.replaced) == ("=head1 é\ufffd", 1)


def _markdown(text: str) -> list[tuple[str, str, list[str]]]:
    return [(one.title, one.heading, [block.text for block in one.blocks]) for one in parse_markdown(text)]


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("title: >\n  Folded\n  title", "Folded title"),
        ("title: 'It''s' # a comment", "It's"),
        ('title: "Caf\\u00e9"', "Café"),
        ("title: 1.10", "1.10"),
        ("tags: [a]\ntitle: A # B", "A"),
        ("title:", ""),
        ("title: [no, text]", ""),
        ("author: me", ""),
    ],
)
def test_titles_are_what_yaml_gives(front: str, title: str) -> None:
    assert _markdown(f"---\n{front}\n---\nbody") == [(title, "", ["body"])]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\n\nText one\n\n---\n\nmore", [("", ["Text one", "more"])]),
        ("---\n\ntitle: X\n\n---\n\nmore", [("", ["title: X", "more"])]),
        ("---\nJust text\n---\nmore", [("Just text", ["more"])]),
        ("---\n- an item\n---\nmore", [("", ["an item", "more"])]),
    ],
)
def test_a_line_across_the_page_is_no_front_matter(text: str, found: list[tuple[str, list[str]]]) -> None:
    assert [(heading, blocks) for _, heading, blocks in _markdown(text)] == found


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("first line<br>second line", ["first line second line"]),
        ("un<b>believ</b>able <button>Copy</button>`<br>` &lt;b&gt;", ["unbelievable <br> <b>"]),
        ("<div>un<b>believ</b>able<br>two\n<script>alert(1)</script><button>Copy</button></div>", ["unbelievable two"]),
        ("|a|b|\n|-|-|\n||1<br>2|", ["a | b\n| 1 2"]),
        ("<pre><span class=linenos>1</span>a<br>b</pre>", ["a\nb"]),
        ("<table><tr><td>x</td><td></td><td>y</td></tr></table>", ["x |  | y"]),
        (f"{DEEP}deep<br>words\n\nnext", ["deep words", "next"]),
        (
            "Write <your-name> into List<String>, a </body-end>.",
            ["Write <your-name> into List<String>, a </body-end>."],
        ),
        ("Put it below the <script> tag of *this* page.", ["Put it below the <script> tag of this page."]),
        ("- <script> begins *one*.\n\n<style>\n\nThe end.", ["<script> begins one.", "<style>", "The end."]),
        ("a line\r\r<script>\rfoo bar", ["a line", "<script> foo bar"]),
        ("It is <sl-tag>new</sl-tag>, <x-y a='b'>with <x-z/>an <svg/>icon.", ["It is new, with an icon."]),
        (
            "No<script>a <b</script> code, <!-- no comment -->and 2<sup>32</sup> m<sup>2</sup>.",
            ["No code, and 2^32 m2."],
        ),
    ],
)
def test_html_in_markdown_is_read_as_in_a_page(text: str, blocks: list[str]) -> None:
    assert _markdown(text) == [("", "", blocks)]


@pytest.mark.parametrize(
    "nested",
    [
        "".join(f"{'  ' * depth}- item {depth}\n" for depth in range(15)),
        "+ - + - + - + - + - +\n",
        ">" * 21 + " quoted\n",
        ">" * 2000 + " quoted\n",  # more than can be parsed: read as plain text
        "[" * 2000 + "\n",
    ],
)
def test_deep_markdown_keeps_its_text(nested: str) -> None:
    blocks = [block for _, _, blocks in _markdown(f"{nested}\nThe end of the text.") for block in blocks]
    assert blocks[-1] == "The end of the text."
    assert ("item 14" in blocks) == ("item" in nested)
    assert ("quoted" in " ".join(blocks)) == ("quoted" in nested)


def test_headings_of_html_in_markdown() -> None:
    assert _markdown("<h1 align=center>Big</h1>\n\ntext\n\n# Later") == [
        ("Big", "Big", ["text"]),
        ("Big", "Later", []),
    ]


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
        ("A.1.2. Appendix", "Appendix"),
        ("Programming in C# ¶", "Programming in C#"),
        ("Programming in C#", "Programming in C#"),
        ("Scopes #", "Scopes"),
        *(
            (kept, kept)
            for kept in (
                "2.0.1 - 2024-03-01",
                "802.11 networks",
                "1.5 GB limit",
                "3. Oktober",
                "X.509 certificates",
                "Chapter 11 bankruptcy",
                "(404) not found",
                "1.1. (draft)",
            )
        ),
    ],
)
def test_headings_lose_the_numbers_that_can_only_be_those_of_sections(heading: str, clean: str) -> None:
    assert clean_heading(heading) == clean


def test_headings_of_the_built_in_documentation_lose_every_number(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<h1>3. Syntax</h1><p>text</p>")
    (tmp_path / "a.pod").write_text("=head1 3. Syntax\n\ntext\n")
    for name in ("a.html", "a.pod"):
        (section,) = parse_file(tmp_path / name)
        assert section.heading == "Syntax"
    assert parse_html((tmp_path / "a.html").read_bytes())[0].heading == "3. Syntax"


def test_a_link_of_a_sign_alone_is_no_heading() -> None:
    page = '<h1>F#<a href="#f">#</a></h1><p>text <a href="#a">#1</a></p>'
    assert _flat(parse_html(page.encode())) == [("F#", ["text #1"])]


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

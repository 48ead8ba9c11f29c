from __future__ import annotations

from nginx_router import lines

TEXT = "# the blog\n\nblog.example.com  # since 2019\n  www.example.com\t# old\n#c.example.com\nb#x\n"


def test_entries_have_their_line_numbers() -> None:
    assert lines.entries(TEXT) == [(3, "blog.example.com"), (4, "www.example.com"), (6, "b#x")]


def test_a_line_is_added_at_the_end_also_behind_a_last_line_without_newline() -> None:
    assert lines.add("a\nb", ["c", "d"]) == "a\nb\nc\nd\n"
    assert lines.add("", ["c"]) == "c\n"
    assert lines.add("a", []) == "a"


def test_keeping_some_entries_leaves_comments_and_blank_lines() -> None:
    assert lines.keep(TEXT, lambda entry: entry.startswith("www")) == "# the blog\n\n  www.example.com\t# old\n#c.example.com\n"


def test_replacing_an_entry_keeps_its_place_indentation_and_comment() -> None:
    assert lines.replace(TEXT, {"www.example.com": "w.example.com"}) == TEXT.replace("www.", "w.")


def test_edit_changes_and_removes_at_once() -> None:
    assert lines.edit("a # 1\nb # 2\nc # 3\n", {"a": "A", "b": None, "c": "c"}.__getitem__) == "A # 1\nc # 3\n"


def test_only_a_newline_ends_a_line() -> None:
    text = "# a\x0cevil.com\u2028evil.org\x85evil.net\rb\na.com\r\n"
    assert lines.entries(text) == [(2, "a.com")]
    assert lines.keep(text, lambda _: True) == text

"""Text files: what ends a line, what is refused, and writing that is whole or not there."""

import os

import pytest
from fewstep.data.files import read_lines, read_text, write_text
from fewstep.errors import BadFileError


def test_only_newlines_end_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\u2028still one\r\ntwo\x0b\x85still\n\nthree\u2029".encode())
    assert read_lines(tmp_path / "prompts.txt") == ["one\u2028still one", "two\x0b\x85still", "", "three\u2029"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "empty").touch()
    assert read_text(tmp_path / "empty") == "" and read_lines(tmp_path / "empty") == []


@pytest.mark.parametrize(("content", "message"), [(b"a\xff", r"not UTF-8 text \(byte 1\)"), (None, "cannot be read")])
def test_what_is_no_text_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(BadFileError, match=message):
        read_lines(tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    file = tmp_path / "file"
    write_text(file, "before")
    (tmp_path / ".file.part").symlink_to("/dev/full")
    with pytest.raises(OSError):
        write_text(file, "after" * 10_000)
    assert file.read_text() == "before"

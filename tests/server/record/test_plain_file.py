"""Reading from a stranger's directory: plain files alone, no link, no more than a limit."""

import os

import pytest

from metaleak.server.record.plain_file import is_plain, plain_folders, read_plain


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "file").write_bytes(b"content")
    (tmp_path / "root" / "inner" / "file").write_bytes(b"inner")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    return tmp_path / "root"


def test_plain_files_are_read_in_folders_too(root):
    assert (read_plain(root, "file", 7), read_plain(root, "inner/file", 7)) == (b"content", b"inner")
    assert plain_folders(root, "inner", 1) == []
    assert plain_folders(root, "nothing", 1) == []
    assert is_plain(root, "file")
    with pytest.raises(FileNotFoundError):
        read_plain(root, "nothing/file", 7)


def make(root, what):
    file = root / "bad"
    if what == "link":
        file.symlink_to(root.parent / "outside" / "file")
    elif what == "link inside":
        file.symlink_to("file")
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "huge":
        with file.open("wb") as opened:
            opened.truncate(1 << 40)


@pytest.mark.parametrize("what", ["link", "link inside", "device", "pipe", "folder", "huge"])
def test_anything_else_is_named_in_one_line_and_not_read(root, what):
    make(root, what)
    with pytest.raises(ValueError, match=str(root / "bad")) as caught:
        read_plain(root, "bad", 100)
    assert "\n" not in str(caught.value)
    assert is_plain(root, "bad") == (what == "huge")


@pytest.mark.parametrize("name", ["linked/file", "../outside/file", "inner/../file", "inner//file"])
def test_no_name_leads_out(root, name):
    (root / "linked").symlink_to(root.parent / "outside")
    with pytest.raises(ValueError, match="file"):
        read_plain(root, name, 100)


def test_folders_behind_a_link_are_refused_and_links_among_them_left_out(root):
    (root / "folders" / "one").mkdir(parents=True)
    (root / "folders" / "two").symlink_to(root / "inner")
    (root / "linked").symlink_to(root / "folders")
    assert plain_folders(root, "folders", 2) == ["one"]
    with pytest.raises(ValueError, match="linked: a link"):
        plain_folders(root, "linked", 2)
    with pytest.raises(ValueError, match="more than the 1 entries"):
        plain_folders(root, "folders", 1)

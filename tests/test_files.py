import subprocess
import sys

import pytest

from tfopt._base.files import files_below, replacing, size_of, tree_digest, write_text
from tfopt.errors import MissingFileError, NoRoomError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = write_text(tmp_path / "deep" / "er" / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]
    write_text(target, "new")
    assert target.read_text() == "new"


def test_folders_made_on_the_way_to_a_failure_are_gone(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "c"):
        raise RuntimeError
    assert not (tmp_path / "a").exists()


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with replacing(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / f"{content}.txt").write_text(content)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["new.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    aside = tmp_path / ".d.old"  # what such a kill leaves behind
    aside.mkdir()
    (aside / "good.txt").write_text("good")
    with pytest.raises(RuntimeError), replacing(tmp_path / "d"):
        raise RuntimeError
    assert (tmp_path / "d" / "good.txt").read_text() == "good"


def test_leftovers_do_not_count(tmp_path):
    write_text(tmp_path / "a", "123")
    digest = tree_digest(tmp_path)
    (tmp_path / ".1234.tmp.b").write_text("leftover")
    assert size_of(tmp_path) == 3 and files_below(tmp_path) == [tmp_path / "a"] and tree_digest(tmp_path) == digest


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(MissingFileError, match="nothing was written"), replacing(tmp_path / "x"):
        pass


def test_a_full_disk_keeps_the_good_file(tmp_path):
    """The kernel itself refuses to write on: a limit on the size of files stands in for a full disk."""
    target = write_text(tmp_path / "a.txt", "good")
    script = (
        "import resource, signal; from tfopt._base.files import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_bytes({str(target)!r}, b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large: " in done.stderr
    assert f"{target} needs more than the 1,000 bytes that were written" in done.stderr
    assert target.read_text() == "good" and list(tmp_path.iterdir()) == [target]


def test_what_will_not_fit_is_not_begun(tmp_path):
    says = r"a.bin needs 1,152,921,504,606,846,976 bytes, [\d,]+ are free"
    with pytest.raises(NoRoomError, match=says), replacing(tmp_path / "a.bin", needs=2**60):
        pytest.fail("it was begun")
    assert not list(tmp_path.iterdir())

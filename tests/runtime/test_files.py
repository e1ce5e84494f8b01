"""Whole files or none, with the rights of the umask, also on disks that refuse chmod and fsync; no leftovers."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srcnn.runtime import files
from srcnn.runtime.files import TEMPORARY_PREFIX, FolderLock, atomic_file, flush_folder, remove_unfinished

WRITER = """
import sys, time
from pathlib import Path
from srcnn.runtime.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def write(path, content=b"content"):
    with atomic_file(path) as file:
        file.write(content)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_gives_a_file_its_rights(tmp_path, umask, mask):
    umask(mask)
    path = write(tmp_path / "a.txt")
    assert path.read_bytes() == b"content" and path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_disk_that_refuses_chmod_and_fsync_is_written_to(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    for name in ("chmod", "fchmod", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    for code in (errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
        assert write(tmp_path / "a.txt").read_bytes() == b"content"
        flush_folder(tmp_path)
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "b.txt")
    with pytest.raises(OSError, match=os.strerror(code)):
        flush_folder(tmp_path)
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "a.txt")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise KeyError
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"content"
    longest = write(tmp_path / f"{'l' * 251}.jpg")
    assert longest.is_file()


def test_the_files_of_killed_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    root = Path(__file__).resolve().parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / name], stdout=subprocess.PIPE, cwd=root)
               for name in ("a", "b")]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        remove_unfinished(tmp_path)
        assert len(names(tmp_path)) == 2
        writers[0].kill()
        writers[0].wait()
        remove_unfinished(tmp_path)
        assert len(names(tmp_path)) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []


def test_files_without_a_lock_are_removed_after_an_hour_and_nothing_else_is(tmp_path, monkeypatch):
    for name, age in (("old.jpg", 4000), ("new.jpg", 100), ("0123456789abcdef", 100)):
        path = tmp_path / f"{TEMPORARY_PREFIX}{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}link").symlink_to("nowhere")
    os.utime(write(tmp_path / "photo.jpg"), (0, 0))

    def no_locks(fd):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "lock_file", no_locks)
    remove_unfinished(tmp_path)
    kept = [f"{TEMPORARY_PREFIX}{name}" for name in ("0123456789abcdef", "folder", "link", "new.jpg")]
    assert names(tmp_path) == [*kept, "photo.jpg"]
    write(tmp_path / "b.jpg")
    remove_unfinished(tmp_path / "nowhere")


def test_a_file_that_another_process_removes_before_its_lock_is_made_again(tmp_path, monkeypatch):
    calls = []

    def lock(fd):
        calls.append(fd)
        if len(calls) == 1:
            return False  # the other process holds it and is about to remove the file
        if len(calls) == 2:
            for path in tmp_path.glob(f"{TEMPORARY_PREFIX}*"):
                path.unlink()
        return True

    monkeypatch.setattr(files, "lock_file", lock)
    assert write(tmp_path / "a.jpg").read_bytes() == b"content"
    assert len(calls) == 3 and names(tmp_path) == ["a.jpg"]


def test_a_disk_that_gives_everybody_the_lock_is_noticed_by_the_one_who_had_it(tmp_path, monkeypatch):
    """As some NFS and Lustre mounts do."""
    monkeypatch.setattr(files, "lock_file", lambda fd: True)
    first = FolderLock(tmp_path, 0)
    first.claim()
    first.check_alone()
    FolderLock(tmp_path, 0)
    first.check_alone()  # a doctor, who looks whether it can be locked, claims nothing
    second = FolderLock(tmp_path, 0)
    second.claim()
    with pytest.raises(BlockingIOError, match=str(tmp_path)):
        first.check_alone()
    second.check_alone()


def test_a_lock_is_no_way_to_write_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "run" / files.LOCK).symlink_to(victim)
    with pytest.raises(OSError):
        FolderLock(tmp_path / "run", 0).claim()
    assert victim.read_bytes() == b"precious"

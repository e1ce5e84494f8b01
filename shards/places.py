"""Where photos come from and shards go: a folder, also one that many machines share, or an s3, gs or az address.

Names are relative to the place, with slashes. Object stores are written through obstore, as the stream reads them, with
the same credentials from the environment; its own documentation advises against its fsspec interface.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from shards.pool import ShardsFailed
from srcnn import files
from srcnn.object_store import AccessConfig, ObjectStore
from srcnn.photo import SUFFIXES, find_photos
from srcnn.storage import is_url

WRITTEN_SCHEMES = ("s3", "gs", "az")


class FolderPlace:
    """A folder of this machine, or of a disk that machines share."""

    def __init__(self, location: str) -> None:
        self.location, self.path = location, Path(location)

    def photos(self, exclude: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """All files in and below it, but for those of `exclude`d places: (photos by suffix, other files).

        Raises:
            FileNotFoundError: no such folder.
        """
        apart = [Path(other).resolve() for other in exclude if not is_url(other)]
        found = []
        for paths in find_photos(self.path, exclude=apart[0] if apart else None):
            kept = paths
            for other in apart[1:]:
                kept = [path for path in kept if not path.resolve().is_relative_to(other)]
            found.append([path.relative_to(self.path).as_posix() for path in kept])
        return found[0], found[1]

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of the files right in one of its folders, by their names there."""
        place = self.path / folder
        with os.scandir(place) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def names(self) -> list[str]:
        """What is right in it, files and folders."""
        return os.listdir(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A file of this machine with the content of that one: here itself."""
        yield self.path / name

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A binary file to write, which has its name when it is whole, or not at all."""
        with files.atomic_file(self.path / name) as file:
            yield file

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def clear(self, names: Iterable[str]) -> None:
        """Makes these folders, and clears away what was left half-written in them."""
        for folder in (self.path / name for name in names):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{files.TEMPORARY_PREFIX}*"):
                path.unlink()

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Keeps other shard makers out; raises ShardsFailed where one is at work there already."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ShardsFailed(f"{self.location}: another process is making shards there; wait for it") from error
        except OSError:
            pass  # a network disk that knows no locks on folders
        try:
            yield
        finally:
            os.close(handle)


class StorePlace:
    """What an address of an object store names. An object is there when it is whole, and only then."""

    def __init__(self, location: str) -> None:
        self._store = ObjectStore(location, AccessConfig())
        self.location = self._store.location

    def _do(self, name: str, call: Callable[[Any, Any], Any]) -> Any:
        """`call(obstore, store)`, tried again while that may help."""
        return self._store.persistently(name, call)

    def _children(self, folder: str = "") -> tuple[dict[str, int], list[str]]:
        """Bytes of the objects right below a prefix, and the prefixes there, by the names after it."""
        start = f"{folder}/" if folder else ""
        found = self._do(folder, lambda obstore, store: obstore.list_with_delimiter(store, start or None))
        sizes = {item["path"].removeprefix(start): item["size"] for item in found["objects"]}
        return sizes, [prefix.removeprefix(start).rstrip("/") for prefix in found["common_prefixes"]]

    def photos(self, exclude: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """As `FolderPlace.photos`. Raises FileNotFoundError where nothing has such an address."""
        apart = [other.rstrip("/") for other in exclude]
        listed = self._do("", lambda obstore, store: obstore.list(store).collect())
        names = sorted(
            name for name in (item["path"] for item in listed)
            if not any(part.startswith(".") for part in name.split("/"))
            and not any(is_within(f"{self.location}/{name}", other) for other in apart)
        )
        if not names:
            raise FileNotFoundError(f"{self.location}: nothing is there")
        is_photo = {name: PurePosixPath(name).suffix.lower() in SUFFIXES for name in names}
        return [name for name in names if is_photo[name]], [name for name in names if not is_photo[name]]

    def sizes(self, folder: str = "") -> dict[str, int]:
        return self._children(folder)[0]

    def names(self) -> list[str]:
        sizes, folders = self._children()
        return [*sizes, *folders]

    def read(self, name: str) -> bytes:
        return self._store.read(name)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="srcnn-") as folder:
            path = Path(folder, f"photo{PurePosixPath(name).suffix}")
            path.write_bytes(self.read(name))
            yield path

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile(prefix="srcnn-") as file:
            yield file

            def put(obstore: Any, store: Any) -> None:
                file.seek(0)
                obstore.put(store, name, file)

            self._do(name, put)

    def remove(self, names: Iterable[str]) -> None:
        names = list(names)
        if names:
            self._do(names[0], lambda obstore, store: obstore.delete(store, names))

    def clear(self, names: Iterable[str]) -> None:
        """There are no folders, and nothing is half-written."""

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Object stores have no locks. Two makers of the same shards write the same objects twice; other ones `claim`
        refuses."""
        yield


Place = FolderPlace | StorePlace


@lru_cache(maxsize=64)
def place(location: str) -> Place:
    """The place at a folder's path or an address.

    Raises:
        ValueError: an address of a kind that cannot be written, or none at all.
    """
    scheme = location.partition("://")[0]
    if not is_url(location):
        return FolderPlace(location)
    if scheme not in WRITTEN_SCHEMES:
        raise ValueError(f"{scheme}: photos and shards lie in a folder or at {', '.join(WRITTEN_SCHEMES)} addresses")
    return StorePlace(location)


def is_within(inner: str, outer: str) -> bool:
    """Whether a place or file is another place or below it."""
    if is_url(inner) or is_url(outer):
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    return Path(inner).resolve().is_relative_to(Path(outer).resolve())

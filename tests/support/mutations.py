"""Hostile changes of valid files: of bytes, of JSON at its nodes, of tar and PNG with their checksums put right."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
import zlib
from random import Random
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 255, 65_535, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**18, 10**30,
    10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    ".", "..", "../a.tar", "/etc/passwd", "a\0b", "a\\b", "C:a",
    "x" * 300, "\ud800", "https://other/a.tar", "pipe:cat", "<script>", "npy", "png", "any", [], {}, [[]],
    [10**9, 10**9], [16, 16, 3], [[[[[[]]]]]], {"a": 1}, {"name": "a.tar"},
]  # fmt: skip
BYTES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"99999999", b"-1",
         bytes(512), b"[" * 3000, b'{"a":' * 2000]


def mutated(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """One to four changes; where it is JSON, or begins with it as safetensors do, half of them at its nodes."""
    for _ in range(random.randint(1, 4)):
        change = random.choice((_changed_tree, _changed_tree, _changed_bytes, _spliced))
        data = change(data, random, others)
    return data


def _changed_tree(data: bytes, random: Random, others: list[bytes]) -> bytes:
    try:
        if data[:1] == b"{" and b"\n{" in data:
            lines = data.split(b"\n")
            place = random.randrange(len(lines))
            lines[place] = _dumped(_with_a_node_changed(json.loads(lines[place]), random))
            return b"\n".join(lines)
        if data[:1] == b"{":
            return _dumped(_with_a_node_changed(json.loads(data), random))
        if data[8:9] == b"{":
            stop = 8 + int.from_bytes(data[:8], "little")
            header = _dumped(_with_a_node_changed(json.loads(data[8:stop]), random))
            return struct.pack("<Q", len(header)) + header + data[stop:]
    except (ValueError, RecursionError):
        pass
    return _changed_bytes(data, random, others)


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode(errors="surrogatepass")


def _with_a_node_changed(tree: Any, random: Random) -> Any:
    """A node replaced, removed, or repeated."""
    tree = copy.deepcopy(tree)
    nodes = [(parent, key) for parent in _containers(tree) for key in _keys(parent)]
    if not nodes:
        return random.choice(HOSTILE)
    parent, key = random.choice(nodes)
    kind = random.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif kind == 1:
        parent[str(random.choice(HOSTILE))] = parent[key]
    elif kind == 2 and isinstance(parent[key], (int, float)):
        parent[key] = random.choice((-parent[key], parent[key] + 1, parent[key] * 512, str(parent[key])))
    else:
        parent[key] = copy.deepcopy(random.choice(HOSTILE))
    return tree


def _containers(tree: Any) -> list[Any]:
    if not isinstance(tree, (dict, list)):
        return []
    below = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(container for item in below for container in _containers(item))]


def _keys(parent: Any) -> list[Any]:
    return list(parent) if isinstance(parent, dict) else list(range(len(parent)))


def _changed_bytes(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """A bit flipped, bytes written over, put in, or cut out; most often near the beginning, where headers are."""
    reach = len(data) if random.random() < 0.5 else min(len(data), 600)
    place = random.randint(0, max(0, reach - 1))
    kind = random.randrange(5)
    if kind == 0 and data:
        return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place + random.choice((1, 4, 512)) :]
    piece = random.choice(BYTES) if random.random() < 0.7 else random.randbytes(random.randint(1, 16))
    return data[:place] + piece + data[place + (len(piece) if kind == 3 else 0) :]


def _spliced(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """The beginning of this one and the end of another, or of itself again."""
    other = random.choice([data, *others])
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :][:20_000]


def mend_tar(content: bytes) -> bytes:
    """With the checksums of its headers put right, so that not every change ends there."""
    mended = bytearray(content)
    for start in range(0, len(mended) - 511, 512):
        if mended[start + 257 : start + 262] == b"ustar":
            mended[start + 148 : start + 156] = b" " * 8
            mended[start + 148 : start + 156] = b"%06o\0 " % sum(mended[start : start + 512])
    return bytes(mended)


def mend_png(content: bytes) -> bytes:
    """With the checksums of its chunks put right."""
    mended, place = bytearray(content), 8
    while content[:4] == b"\x89PNG" and place + 12 <= len(mended):
        stop = place + 8 + int.from_bytes(mended[place : place + 4], "big")
        if stop + 4 > len(mended):
            break
        mended[stop : stop + 4] = struct.pack(">I", zlib.crc32(mended[place + 4 : stop]))
        place = stop + 4
    return bytes(mended)


def zipped(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {part.filename: archive.read(part) for part in archive.infolist()}

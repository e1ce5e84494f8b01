"""Shards from elsewhere that cannot be used: all that is wrong with them is named, and nothing of them is run."""

import gzip
import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from conftest import contents
from messages import lines_with, says
from PIL import Image
from small import draw_photo, small_shards
from test_foreign_shards import encoded, index, samples, write


def refused(folder, capsys, *options):
    """What is said by an index command that leaves nothing behind."""
    before = contents(folder)
    assert index(folder, *options) == 1
    assert contents(folder) == before
    return capsys.readouterr().err


class Harmful:
    """Its unpickling makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def odd_pictures(folder):
    """Pairs that cannot be used, by key: clean, degraded, and what is to be said of them."""
    good = draw_photo(1, 37, 53)
    png = encoded(good, "png")
    wide, small, deep = draw_photo(1, 37, 54), draw_photo(1, 31, 53), good[..., 0].astype(np.uint16) * 200
    palette, gif = io.BytesIO(), io.BytesIO()
    Image.fromarray(good).quantize(9).save(palette, "PNG")
    Image.fromarray(good).save(gif, "GIF")
    jpeg = encoded(good, "jpg")
    pickled = np.array([Harmful(str(folder / "harm"))], dtype=object)
    return {
        "unequal": (png, encoded(wide, "png"), "53x37 and 54x37"),
        "tiny": (encoded(small, "png"), encoded(small, "png"), "53x31"),
        "deep": (encoded(deep, "png"), png, "I;16"),
        "clear": (encoded(np.dstack([good, good[..., 0]]), "png"), png, "RGBA"),
        "bits": (encoded(good[..., 0] > 99, "png"), png, "mode 1"),
        "palette": (png, palette.getvalue(), "mode P"),
        "gif": (gif.getvalue(), png, ""),
        "cut": (png, jpeg[: len(jpeg) // 2], ""),
        "nothing": (b"", png, "0 bytes"),
        "pickled": (png, encoded(pickled, "npy"), "object"),
        "floats": (encoded(good / 255, "npy"), png, "float64"),
        "stack": (encoded(good[None], "npy"), png, "(1, 37, 53, 3)"),
        "torn": (encoded(good, "npy")[:-1], png, "(37, 53, 3)"),
    }


def test_pairs_that_cannot_be_used_are_all_named_with_the_reason(tmp_path, capsys):
    odd = odd_pictures(tmp_path)
    written = list(samples("clean.png", "degraded.png", num_pairs=20))
    written[5:5] = [{"__key__": f"odd/{key}", "clean.png": clean, "degraded.png": degraded}
                    for key, (clean, degraded, _) in odd.items()]
    del written[1]["degraded.png"], written[-1]["clean.png"]
    written.append(written[-2])
    told = refused(write(tmp_path / "set", written, a_shard=40), capsys)
    for key, (_, _, reason) in odd.items():
        (line,) = lines_with(told, "00000.tar", f"odd/{key}")
        assert reason in line
    for key, missing in ((1, "degraded.png"), (19, "clean.png")):
        assert lines_with(told, "00000.tar", key, "about.json", "cls", "hz.txt", missing)
    assert lines_with(told, "00000.tar", 18)
    assert says(told, tmp_path / "set", len(odd) + 3)
    assert not (tmp_path / "harm").exists()
    np.load(io.BytesIO(odd["pickled"][1]), allow_pickle=True)
    assert (tmp_path / "harm").exists(), "it would have, had it been unpickled"


def test_members_that_are_not_adjacent_are_named_with_the_cure(tmp_path, capsys):
    """As `tar` stores a folder in the order of its disk: all clean pictures, then all degraded ones."""
    written = list(samples("clean.png", "degraded.png", num_pairs=4))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("clean.png", "degraded.png"):
            for sample in written:
                member = tarfile.TarInfo(f"{sample['__key__']}.{name}")
                member.size = len(sample[name])
                tar.addfile(member, io.BytesIO(sample[name]))
    told = refused(tmp_path, capsys)
    for sample in written:
        (line,) = lines_with(told, "a.tar", f"{sample['__key__']}:")
        assert says(line, "adjacent", "tar --sort=name")


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def misleading_members():
    """Members at which decoders raise errors of kinds of their own."""
    png, npy = encoded(draw_photo(1, 37, 53), "png"), encoded(draw_photo(1, 37, 53), "npy")
    huge = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    place = png.index(b"IDAT") - 4
    return {
        "bomb": png[:8] + huge + png[place:],
        "chunk": png[:place] + png_chunk(b"IDAT", png[place + 8 : place + 20]) + b"\0\0\0\5\t\xfd\xfeH" + bytes(40),
        "header": npy.replace(b"}", b"{", 1),
        "size": npy.replace(b"(37, 53, 3)", b"(3700000000000, 53, 3)").replace(b" " * 11, b"", 1),
    }


@pytest.mark.parametrize("kind", ["bomb", "chunk", "header", "size"])
def test_whatever_a_decoder_raises_the_pair_is_named(tmp_path, capsys, kind):
    written = list(samples("clean.png", "degraded.png", num_pairs=4))
    written[2]["degraded.png"] = misleading_members()[kind]
    assert lines_with(refused(write(tmp_path, written), capsys), "00000.tar", 2)


def test_one_key_twice_in_a_row_is_refused(tmp_path, capsys):
    pair = next(samples("clean.png", "degraded.png"))
    assert lines_with(refused(write(tmp_path, [pair, pair]), capsys), "00000.tar", 0)


def lengths(path):
    """Where members begin and the tar ends."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


TAR_DAMAGES = {
    "cut between pairs": (lambda content, places: content[: places[-6]], lambda places, first: places[-6]),
    "cut within a member": (lambda content, places: content[: places[-1] - 700], lambda places, first: first + 8),
    "header": (lambda content, places: content[: places[12] + 1030] + b"?" + content[places[12] + 1031 :],
               lambda places, first: first + 1),
    "two in one": (lambda content, places: content + content, lambda places, first: ""),
    "compressed": (lambda content, places: gzip.compress(content), lambda places, first: ""),
    "text": (lambda content, places: b"no tar at all " * 99, lambda places, first: ""),
    "empty": (lambda content, places: b"", lambda places, first: ""),
}  # and where that is seen, if at a byte or at a pair: from the places of members and the first pair's number


@pytest.mark.parametrize(("damage", "seen_at"), TAR_DAMAGES.values(), ids=TAR_DAMAGES)
@pytest.mark.parametrize("number", [0, 2])
def test_damaged_tars_are_named(tmp_path, capsys, damage, seen_at, number):
    path = write(tmp_path, samples("clean.png", "degraded.png")) / f"part-0000{number}.tar"
    places = lengths(path)
    path.write_bytes(damage(path.read_bytes(), places))
    assert lines_with(refused(tmp_path, capsys), path, seen_at(places, 9 * number))


def test_no_shards_no_pairs_other_names_and_ours_are_refused_with_the_cure(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        assert says(refused(tmp_path / name, capsys), tmp_path / name, ".tar")
    other = write(tmp_path / "other", samples("hq.png", "lq.jpg"))
    told = refused(other, capsys)
    assert says(told, "about.json", "cls", "hq.png", "hz.txt", "lq.jpg", "--clean", "--degraded")
    told = refused(other, capsys, "--clean", "hq.png", "--degraded", "poor.jpg")
    assert lines_with(told, "part-00000.tar", 0, "poor.jpg")
    told = refused(write(tmp_path / "none", []), capsys, "--clean", "a.png", "--degraded", "b.png")
    assert str(tmp_path / "none") in told
    assert says(refused(other, capsys, "--tile_pixels", "0"), "--tile_pixels", 0, "4096")
    ours = small_shards(tmp_path / "ours", num_train=1, num_val=1) / "train"
    assert says(refused(ours, capsys), ours, "manifest")
    (tmp_path / "other" / "manifest.json").write_text("{}")
    assert says(refused(other, capsys), other / "manifest.json", "format")

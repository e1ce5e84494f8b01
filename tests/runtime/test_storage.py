"""Reading a folder, a web server and S3: the same bytes; faults mended or named, within the time allowed."""

import itertools
import logging
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from messages import facts
from servers import FaultyServer, nginx, s3

from srcnn.runtime.object_store import AccessConfig, ReadFailed
from srcnn.runtime.storage import open_storage

NUM_BYTES = 100_003
CONTENT = np.random.default_rng(0).integers(0, 256, NUM_BYTES, np.uint8).tobytes()
HASTY = AccessConfig(timeout_seconds=0.25, give_up_seconds=0.5)
PATIENT = AccessConfig(timeout_seconds=10, give_up_seconds=20)
BRIEF = AccessConfig(timeout_seconds=0.25, give_up_seconds=0.15)
RESTLESS = AccessConfig(timeout_seconds=0.4, give_up_seconds=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "shards").mkdir()
    (folder / "shards" / "a.tar").write_bytes(CONTENT)
    (folder / "shards" / "empty.json").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def moto(folder):
    with s3(folder, "bucket") as endpoint:
        yield endpoint


@pytest.fixture(scope="module", params=["folder", "http", "s3"])
def location(request, folder, tmp_path_factory):
    """The same folder as a folder, behind nginx and in a bucket."""
    if request.param == "folder":
        yield folder / "shards"
    elif request.param == "http":
        with nginx(folder, tmp_path_factory.mktemp("nginx") / "work") as server:
            yield f"{server.url}/shards"
    else:
        request.getfixturevalue("moto")
        yield "s3://bucket/shards"


@pytest.fixture(scope="module", params=["http", "s3"])
def faulty_server(request, folder):
    """A web server, or what stands before S3, that does wrong when told to; and the location of the shards there."""
    upstream = request.getfixturevalue("moto") if request.param == "s3" else ""
    with FaultyServer(folder, upstream) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server, "s3://bucket/shards" if upstream else f"{server.url}/shards"


@pytest.fixture
def faulty(faulty_server):
    faulty_server[0].clear()
    yield faulty_server
    faulty_server[0].clear()


def test_a_small_file_is_read_whole(location):
    storage = open_storage(location)
    assert storage.read("a.tar") == CONTENT
    assert storage.read("empty.json") == b""


@pytest.mark.parametrize("span", [(0, 1), (0, NUM_BYTES), (513, 8707), (NUM_BYTES - 1, NUM_BYTES)])
def test_a_range_is_exactly_the_bytes_asked_for(location, span):
    content = open_storage(location).read_range("a.tar", *span)
    assert bytes(content) == CONTENT[slice(*span)]
    assert memoryview(content).nbytes == span[1] - span[0]


def test_a_slash_at_the_end_of_a_location_changes_nothing(location):
    assert bytes(open_storage(f"{location}/").read_range("a.tar", 5, 9)) == CONTENT[5:9]


def test_many_threads_read_the_right_ranges_at_once(location):
    storage = open_storage(location)
    starts = range(0, NUM_BYTES - 700, 1009)
    with ThreadPoolExecutor(16) as pool:
        contents = list(pool.map(lambda start: bytes(storage.read_range("a.tar", start, start + 700)), starts))
    assert contents == [CONTENT[start : start + 700] for start in starts]


def test_a_file_that_is_not_there_is_named(location):
    storage = open_storage(location)
    with pytest.raises(FileNotFoundError, match="shards/absent.tar"):
        storage.read("absent.tar")
    with pytest.raises(OSError, match="shards/absent.tar"):
        storage.read_range("absent.tar", 0, 10)


@pytest.mark.parametrize("span", [(NUM_BYTES - 10, NUM_BYTES + 10), (NUM_BYTES + 100, NUM_BYTES + 200)])
def test_a_range_beyond_the_end_is_refused_not_shortened(location, span):
    with pytest.raises(ReadFailed, match="shards/a.tar"):
        open_storage(location, BRIEF).read_range("a.tar", *span)


TRANSIENT = {
    "close": "body|cut|closed|incomplete|interrupted",
    "stall": "time",
    "slow": "time",
    "short": "2000",
    "reset": "connection|reset|closed",
    "503": "503",
    "500": "500",
    "429": "429",
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_passes_is_mended_by_asking_again(faulty, fault):
    server, location = faulty
    server.fault = lambda path, start, stop, number: fault if number == 1 else None
    storage = open_storage(location, RESTLESS if fault in ("slow", "stall") else PATIENT)
    assert bytes(storage.read_range("a.tar", 1000, 3000)) == CONTENT[1000:3000]
    assert len(server.asked("a.tar")) == 2


@pytest.mark.parametrize("fault", sorted(TRANSIENT.keys() - {"short"}))
def test_a_small_file_too_is_asked_for_again(faulty, fault):
    server, location = faulty
    faults = itertools.chain([fault], itertools.repeat(None))
    server.fault = lambda *_: next(faults)
    assert open_storage(location, RESTLESS).read("a.tar") == CONTENT


@pytest.mark.parametrize(("fault", "cause"), TRANSIENT.items())
def test_a_fault_that_stays_ends_in_time_with_file_range_and_cause(faulty, fault, cause):
    server, location = faulty
    server.fault = lambda *_: fault
    begin = time.monotonic()
    with pytest.raises(ReadFailed, match=facts("shards/a.tar", 1000, 3000) + rf".*({cause})"):
        open_storage(location, HASTY).read_range("a.tar", 1000, 3000)
    assert time.monotonic() - begin < 30, "the default is to give up after two minutes"
    assert len(server.asked("a.tar")) > 1


@pytest.mark.parametrize("fault", ["404", "403", "401"])
def test_what_is_absent_or_forbidden_is_not_asked_for_again(faulty, fault):
    server, location = faulty
    server.fault = lambda *_: fault
    storage = open_storage(location, PATIENT)
    with pytest.raises(ReadFailed, match=facts("shards/a.tar", 10, 30)):
        storage.read_range("a.tar", 10, 30)
    with pytest.raises(FileNotFoundError if fault == "404" else ReadFailed, match=r"shards/a\.tar"):
        storage.read("a.tar")
    assert len(server.asked("a.tar")) == 2


def test_pauses_between_attempts_grow(faulty):
    server, location = faulty
    times = []

    def fail(*_):
        times.append(time.monotonic())
        return "503"

    server.fault = fail
    with pytest.raises(ReadFailed):
        open_storage(location, AccessConfig(give_up_seconds=0.9)).read_range("a.tar", 0, 10)
    pauses = np.diff(times)
    assert 2 <= len(pauses) <= 8
    assert pauses[-1] > pauses[0]


def test_a_server_that_knows_no_ranges_is_refused_not_misread(faulty):
    server, location = faulty
    server.fault = lambda *_: "norange"
    with pytest.raises(ReadFailed, match=facts("shards/a.tar", 1000, 3000)):
        open_storage(location, BRIEF).read_range("a.tar", 1000, 3000)
    assert open_storage(location, PATIENT).read("a.tar") == CONTENT


def test_closing_ends_an_attempt_that_would_go_on(faulty):
    server, location = faulty
    server.fault = lambda *_: "503"
    storage = open_storage(location, AccessConfig(give_up_seconds=100))
    closing = threading.Timer(0.3, storage.close)
    closing.start()
    begin = time.monotonic()
    with pytest.raises(ReadFailed, match="503"):
        storage.read_range("a.tar", 0, 10)
    closing.join()
    assert time.monotonic() - begin < 50


def test_no_server_at_all_is_named_with_the_cause(folder):
    with FaultyServer(folder) as server:
        url = f"{server.url}/shards"
    with pytest.raises(ReadFailed, match=facts(f"{url}/a.tar", 0, 10, "connect")):
        open_storage(url, BRIEF).read_range("a.tar", 0, 10)


@pytest.mark.parametrize("address", ["pipe:touch {made}", "pipe:cat x.tar", "ftp://host/shards", "file:///shards",
                                     "hf://host/shards", "pipe://touch {made}", "exec://touch {made}"])  # fmt: skip
def test_what_is_no_known_kind_of_location_is_refused_and_never_run(address, tmp_path):
    made = tmp_path / "made"
    with pytest.raises(ValueError, match=address.partition(":")[0]):
        open_storage(address.format(made=made)).read("a.tar")
    assert not made.exists()


def all_texts(error, caplog):
    """Whatever a user or a log may see of an error."""
    return "".join(traceback.format_exception(error)) + caplog.text


@pytest.mark.parametrize("fault", ["403", "404", "503", "reset", "slow", "norange"])
def test_keys_of_the_environment_are_in_no_message(faulty, fault, caplog):
    server, location = faulty
    server.fault = lambda *_: fault
    caplog.set_level(logging.DEBUG)
    with pytest.raises(OSError) as caught:
        open_storage(location, BRIEF).read_range("a.tar", 0, 10)
    assert "of-nobody" not in all_texts(caught.value, caplog)


@pytest.mark.parametrize("fault", ["403", "404", "503", "reset"])
@pytest.mark.parametrize("secret", ["user:hidden-pass@{host}/shards", "{host}/shards?sig=hidden-sig"])
def test_secrets_of_an_address_are_in_no_message(folder, fault, secret, caplog):
    caplog.set_level(logging.DEBUG)
    with FaultyServer(folder) as server:
        server.fault = lambda *_: fault
        url = "http://" + secret.format(host=server.url.removeprefix("http://"))
        with pytest.raises((OSError, ValueError)) as caught:
            open_storage(url, BRIEF).read_range("a.tar", 0, 10)
    assert "hidden" not in all_texts(caught.value, caplog)


@pytest.mark.parametrize("key", ["timeout_seconds", "give_up_seconds", "num_connections", "cache_gigabytes"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_have_to_be_positive(key, value):
    with pytest.raises(ValueError, match=key):
        AccessConfig(**{key: value})


def test_a_missing_obstore_is_named_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ValueError, match=facts("obstore", "pip install 'srcnn[remote]'")):
        open_storage("https://host/shards")
    assert open_storage(tmp_path), "a folder needs no obstore"

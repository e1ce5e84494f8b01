"""The server of `srcnn demo` without a browser: what it takes, from whom, and what it keeps."""

import http.client
import io
import json
import re
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from messages import facts, says
from PIL import Image
from small import draw_photo
from uploads import BAD, MODEL, wait_until, write_jpeg

from srcnn.commands import demo
from srcnn.commands.demo import PAGE, PageServer, clean_name, serve
from srcnn.commands.demo_photo import DemoPhoto
from srcnn.runtime.errors import UserError

MAX_BYTES = 1 << 20


class Client:
    """Asks a server as the page does."""

    def __init__(self, server):
        self.server, self.host = server, f"127.0.0.1:{server.server_port}"

    def ask(self, method, path, body=None, **headers):
        """(status, headers, content)"""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def json(self, path, content):
        """(status, object)"""
        body = content if isinstance(content, bytes) else json.dumps(content)
        status, _, answer = self.ask("POST", path, body)
        return status, json.loads(answer)

    def upload(self, path):
        return self.json(f"/api/photos?name={path.name}", path.read_bytes())[1]

    def restore(self, photo, **others):
        asked = {"network": "srcnn-915", "scale": 1, "degrade": None, **others}
        status, _, answer = self.ask("POST", f"/api/photos/{photo['id']}/restore", json.dumps(asked))
        assert status == 200
        return [json.loads(line) for line in answer.splitlines()]

    def download(self, photos, strength=1, format_name=""):
        asked = {"ids": [photo["id"] for photo in photos], "strength": strength, "format": format_name}
        status, made = self.json("/api/download", asked)
        assert status == 200, made
        return made, self.ask("GET", made["url"])[2]


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MAX_UPLOAD_BYTES", MAX_BYTES)
    folder = tmp_path / "served"
    folder.mkdir()
    with PageServer("127.0.0.1", 0, folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


def test_a_photo_is_uploaded_restored_seen_and_downloaded(client, tmp_path):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    assert photo.items() >= {"name": "photo.jpg", "width": 331, "height": 243, "kind": "JPEG"}.items()
    assert says(photo["found"], "heavily", 10)
    *progress, last = client.restore(photo)
    assert [line["done"] for line in progress if "done" in line][-1] == 1 and not last["result"]["unchanged"]
    sizes = {"?side=100": (100, 73), "?x=300&y=9&width=31&height=40": (31, 40)}
    for query, size in sizes.items():
        for which in ("before", "after"):
            status, headers, content = client.ask("GET", f"/api/photos/{photo['id']}/{which}{query}")
            assert status == 200 and headers["Content-Type"] == "image/png"
            assert Image.open(io.BytesIO(content)).size == size
    made, content = client.download([photo], format_name="png")
    assert made["name"] == "photo_restored.png" and made["bytes"] == len(content)
    assert Image.open(io.BytesIO(content)).getexif()[MODEL] == "Model 7"


def test_downloads_at_the_same_time_do_not_mix(client, tmp_path):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    client.restore(photo)
    asked = [{"ids": [photo["id"]], "strength": strength, "format": "png"} for strength in np.linspace(0, 1, 6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda content: client.json("/api/download", content), asked))
    assert {status for status, _ in answers} == {200} and len({made["url"] for _, made in answers}) == 6


def test_a_photo_that_is_removed_while_it_is_restored_is_no_failure(client, tmp_path, monkeypatch, capsys):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    keep = DemoPhoto._keep
    monkeypatch.setattr(DemoPhoto, "_keep", lambda *arguments: client.server.forget(photo["id"]) or keep(*arguments))
    assert says(client.restore(photo)[-1]["error"], "no longer here") and not capsys.readouterr().err


def test_several_results_come_as_one_zip_under_the_names_of_their_originals(client, tmp_path):
    names = ["a/photo.jpg", "b/photo.jpg", "b/other.png"]
    photos = []
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".jpg":
            write_jpeg(path, quality=10 + number)
        else:
            Image.fromarray(draw_photo(1, 45, 61)).save(path)
        photos.append(client.upload(path))
        client.restore(photos[-1])
    made, content = client.download(photos)
    assert made["name"].endswith(".zip") and made["notes"] == []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["photo.jpg", "photo (2).jpg", "other.png"]
        assert archive.read("other.png") == (tmp_path / "b/other.png").read_bytes()
        for name in archive.namelist()[:2]:
            assert Image.open(io.BytesIO(archive.read(name))).getexif()[MODEL] == "Model 7"
    made, content = client.download(photos, 0.5, "webp")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["photo.webp", "photo (2).webp", "other.webp"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_photo_is_told_by_name_and_nothing_of_it_stays(client, tmp_path, name):
    make, reason = BAD[name]
    said = client.upload(make(tmp_path / name))
    assert says(said["error"], name, reason) and str(client.server.folder) not in said["error"]
    assert not list(client.server.folder.iterdir())


def test_uploads_are_bounded_and_must_tell_their_length(client):
    for length, status in ((MAX_BYTES + 1, 413), (-1, 400), ("", 400)):
        assert client.ask("POST", "/api/photos?name=a.png", **{"Content-Length": str(length)})[0] == status


def test_an_upload_that_breaks_off_leaves_nothing(client):
    folder = client.server.folder
    with socket.create_connection(("127.0.0.1", client.server.server_port)) as raw:
        head = f"POST /api/photos?name=a.png HTTP/1.1\r\nHost: {client.host}\r\nContent-Length: 99\r\n\r\n"
        raw.sendall(f"{head}half".encode())
        wait_until(lambda: list(folder.iterdir()))
    wait_until(lambda: not list(folder.iterdir()))
    assert client.ask("GET", "/api/settings")[0] == 200


def test_where_no_room_is_left_it_is_said(client, tmp_path, monkeypatch):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    monkeypatch.setattr(demo, "MAX_STORED_BYTES", 1000)
    assert says(client.upload(tmp_path / "photo.jpg")["error"], "too many")
    status, said = client.json(f"/api/photos/{photo['id']}/restore", {"network": "srcnn-915", "scale": 1})
    assert status == 507 and says(said["error"], "too many")


def test_other_sites_and_names_pointed_at_this_machine_are_refused(client, tmp_path):
    content = write_jpeg(tmp_path / "photo.jpg").read_bytes()
    upload = "POST", "/api/photos?name=a.jpg", content
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"},
                    {"Host": f"evil.example:{client.server.server_port}"}, {"Host": "["}, {"Origin": "http://["}):
        status, _, answer = client.ask(*upload, **headers)
        assert status == 403 and says(answer, "other sites"), headers
    assert not client.server.photos
    assert client.ask(*upload, Origin=f"http://{client.host}")[0] == 200
    assert client.ask(*upload, Host="localhost:9")[0] == 200  # a port that ssh forwards


@pytest.mark.parametrize(("host", "names"), [("0.0.0.0", ["127.0.0.1", "photos.example"]), ("::1", ["[::1]"])])
def test_a_server_for_others_is_called_by_any_name_and_still_refuses_other_sites(tmp_path, host, names):
    try:
        server = PageServer(host, 0, tmp_path)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        client = Client(server)
        client.host = f"{'[::1]' if ':' in host else '127.0.0.1'}:{server.server_port}"
        for name in names:
            assert client.ask("GET", "/", Host=name)[0] == 200
            assert client.ask("GET", "/", Host=name, Origin="http://evil.example")[0] == 403
        assert json.loads(client.ask("GET", "/api/settings")[2])["isLocal"] == (host == "::1")
        server.shutdown()


def test_the_page_may_load_and_send_nothing_elsewhere(client):
    status, headers, _ = client.ask("GET", "/")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert status == 200 and policy.pop("default-src") == "'none'" and set(policy.values()) == {"'self'", "'none'"}
    for path in PAGE.iterdir():
        assert client.ask("GET", f"/{path.name}")[2] == path.read_bytes()
        if path.suffix != ".jpg":
            addresses = set(re.findall(r"https?://[\w.]+", path.read_text())) - {"http://www.w3.org"}  # of SVG's name
            assert not addresses, path


@pytest.mark.parametrize("path", ["/../demo.py", "/%2e%2e/demo.py", "/demo.py", "/page", "/nothing.js", "/api/nothing",
                                  "/api/photos/../before", "/api/photos/unknown/before?side=9",
                                  "/api/photos/unknown/results/1/a.jpg", "//[", "/%00"])
def test_there_is_nothing_else_to_get(client, path):
    status, _, answer = client.ask("GET", path)
    assert status == 404 and json.loads(answer)["error"]


def test_malformed_requests_are_refused_in_words(client, tmp_path, capfd):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    own = f"/api/photos/{photo['id']}"
    bad = [(f"{own}/restore", body) for body in (
        b"", b"[]", b"{", b"\xff", {}, {"network": 1, "scale": 1}, {"network": "srcnn-915", "scale": "2"},
        {"network": "srcnn-915", "scale": 1, "degrade": "x"})]
    bad += [("/api/download", body) for body in (
        {}, {"ids": [], "strength": 1, "format": ""}, {"ids": [[]], "strength": 1, "format": ""},
        {"ids": [photo["id"]], "strength": "1", "format": ""}, {"ids": [photo["id"]], "strength": 1, "format": ""})]
    for path, body in bad:
        status, said = client.json(path, body)
        assert status == 400 and said["error"], body
    for query in ("", "?side=-1", "?side=x", "?x=0&y=0&width=9", "?x=0&y=0&width=9&height=999"):
        assert client.ask("GET", f"{own}/before{query}")[0] == 400, query
    assert says(client.restore(photo, network="../../weights")[-1]["error"], "network")
    assert says(client.restore(photo, scale=7)[-1]["error"], "scale", 7)
    assert client.ask("GET", f"{own}/after?side=9")[0] == 400
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_that_nobody_expects_is_printed_and_not_shown(client, tmp_path, monkeypatch, capfd):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))

    def fail(*arguments):
        raise RuntimeError("a secret")

    monkeypatch.setattr(demo.DemoPhoto, "restore", fail)
    assert "secret" not in client.restore(photo)[-1]["error"]
    assert "RuntimeError: a secret" in capfd.readouterr().err
    monkeypatch.undo()
    assert "result" in client.restore(photo)[-1], "and the next is restored"


def test_photos_are_deleted_when_their_visitor_leaves_or_is_silent(client, tmp_path, monkeypatch):
    gone, kept = (client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10)) for _ in range(2))
    client.restore(gone)
    assert client.json("/api/forget", {"ids": [gone["id"], "unknown"]}) == (200, {})
    assert client.ask("GET", f"/api/photos/{gone['id']}/before?side=9")[0] == 404
    assert list(client.server.folder.iterdir()) == [client.server.photos[kept["id"]].path.parent]
    monkeypatch.setattr(demo, "EXPIRE_SECONDS", 0)
    client.server.service_actions()
    assert not client.server.photos and not list(client.server.folder.iterdir())


def test_a_photo_waits_for_another_and_a_visitor_who_leaves_stops_it(client, tmp_path):
    photo = client.upload(write_jpeg(tmp_path / "photo.jpg", quality=10))
    asked = json.dumps({"network": "srcnn-915", "scale": 1})
    with client.server.restoring:
        connection = http.client.HTTPConnection(client.host, timeout=60)
        connection.request("POST", f"/api/photos/{photo['id']}/restore", asked)
        answer = connection.getresponse()
        assert json.loads(answer.readline()) == {"waiting": True}
        answer.close()
        connection.close()
    assert "result" in client.restore(photo)[-1]


@pytest.mark.parametrize(("name", "clean"), [
    ("a b.jpg", "a b.jpg"), ("../../etc/passwd", "passwd"), (r"C:\photos\a.jpg", "a.jpg"), ("", "photo"),
    ("a\n\x00\u202eb.png", "ab.png"), ("фото.jpg", "фото.jpg"), ("x" * 500 + ".jpeg", "x" * 115 + ".jpeg")])
def test_names_of_uploads_are_one_part_of_plain_letters(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize(("host", "port", "said"), [("127.0.0.1", None, "in use"), ("127.0.0.1", 99999, "port 99999"),
                                                    ("host.invalid", 0, "host.invalid")])
def test_an_address_that_cannot_be_used_is_told_with_the_cure(client, host, port, said, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(UserError, match=facts(said, "--port", "--host")):
        serve(host, client.server.server_port if port is None else port)


def test_the_example_is_small_and_damaged(client):
    path = Path(PAGE / "example.jpg")
    assert path.stat().st_size < 150_000
    photo = client.upload(path)
    assert says(photo["found"], 20)
    assert not client.restore(photo)[-1]["result"]["unchanged"]
    before, after = (np.asarray(Image.open(io.BytesIO(client.ask(
        "GET", f"/api/photos/{photo['id']}/{which}?side=4000")[2]))) for which in ("before", "after"))
    assert before.shape == after.shape and (before != after).mean() > 0.3

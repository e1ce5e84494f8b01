"""Weights, runs, configs and addresses of strangers: nothing runs, nothing lies about its size, no secret is told."""

import collections
import http.server
import json
import logging
import os
import pickle
import struct
import threading
import traceback
import zipfile

import pytest
import torch
from messages import facts, says
from mutations import unzipped, zipped
from safetensors.torch import save as safetensors_bytes
from seeds import weights
from small import small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.verify import verify_shards
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weight_files import MAX_WEIGHTS_BYTES
from srcnn.models.weights import load_model
from srcnn.runtime.object_store import AccessConfig, ReadFailed
from srcnn.runtime.storage import open_storage
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.runtime.untrusted import InvalidInput
from srcnn.tracking.history import read_metrics, results_table
from srcnn.training.report import html_page

HASTY = AccessConfig(timeout_seconds=2, give_up_seconds=0.2)


def state():
    return dict(SRCNN(ModelConfig(filters=(2, 2))).state_dict())


def refused(path):
    with pytest.raises(ValueError, match=path.name) as caught:
        load_model(path)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def about(**changes):
    told = {"kernels": [9, 1, 5], "filters": [2, 2], "channels": 1, "residual": False}
    return {"format": "pt", "srcnn": json.dumps(told | changes)}


SPOILED = {
    "more": lambda it: it | {"conv4.weight": torch.ones(1)},
    "fewer": lambda it: {name: it[name] for name in list(it)[1:]},
    "shape": lambda it: it | {"conv2.bias": torch.ones(3)},
    "layers": lambda it: it | {"conv1.weight": torch.ones(9)},
    "nan": lambda it: it | {"conv1.bias": torch.full((2,), float("nan"))},
    "infinite": lambda it: it | {"conv1.bias": torch.full((2,), float("inf"))},
    "infinite in float32": lambda it: it | {"conv1.bias": torch.full((2,), 1e300, dtype=torch.float64)},
    "whole numbers": lambda it: it | {"conv1.bias": torch.ones(2, dtype=torch.int64)},
    "large kernel": lambda it: it | {"conv1.weight": torch.ones(2, 1, 65, 65)},
    "even kernel": lambda it: it | {"conv1.weight": torch.ones(2, 1, 8, 8)},
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", SPOILED)
def test_tensors_of_another_name_shape_or_kind_are_refused(tmp_path, kind, suffix):
    path, spoiled = tmp_path / f"model{suffix}", SPOILED[kind](state())
    if suffix == ".pth":
        torch.save(spoiled, path)
    else:
        path.write_bytes(safetensors_bytes(spoiled, about()))
    refused(path)


ODD = {
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "sparse": lambda: torch.ones(2).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(2, device="meta"),
    "expanded": lambda: torch.ones(1).expand(2),
    "no tensor": lambda: [1.0, 2.0],
    "of numbers": lambda: 7,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_dense_tensor_of_floats_is_refused(tmp_path, kind):
    torch.save(state() | {"conv1.bias": ODD[kind]()}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth")


def test_an_expanded_tensor_of_a_huge_size_takes_no_memory(tmp_path):
    torch.save(state() | {"conv1.weight": torch.ones(1, 1, 1, 1).expand(10**6, 10**6, 9, 9)}, tmp_path / "model.pth")
    assert says(refused(tmp_path / "model.pth"), "conv1.weight", (10**6, 10**6, 9, 9))


NO_STATES = [[], "text", {1: torch.ones(1)}, {"a": {}}, None, collections.Counter("a")]


@pytest.mark.parametrize("content", NO_STATES, ids=repr)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    refused(tmp_path / "model.pth")


class Harmful:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_or_fill_the_memory_is_not_read(tmp_path, protocol):
    parts = unzipped(weights(".pth"))
    (name,) = [name for name in parts if name.endswith("data.pkl")]
    made = tmp_path / "made"
    for harm in (Harmful(os.mkdir, str(made)), Harmful(bytearray, 10**12), Harmful(eval, "1"), Harmful(set, ("a",))):
        content = pickle.dumps({"conv1.bias": harm}, protocol)
        (tmp_path / "model.pth").write_bytes(zipped(parts | {name: content}))
        error = refused(tmp_path / "model.pth")
        assert harm.call is not bytearray or says(error, "bytearray")
        torch.save({"conv1.bias": harm}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        refused(tmp_path / "old.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(os.mkdir, str(made)), protocol))
    refused(tmp_path / "plain.pth")
    assert not made.exists()
    pickle.loads(pickle.dumps(Harmful(os.mkdir, str(made))))
    assert made.exists(), "it would have, had it been read"


def test_a_pth_that_unpacks_to_gigabytes_or_holds_less_than_it_says_is_refused(tmp_path):
    parts = unzipped(weights(".pth"))
    with zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(1 << 28) if name.endswith("data/0") else content)
    refused(tmp_path / "model.pth")
    (tmp_path / "less.pth").write_bytes(zipped(parts | {name: b"" for name in parts if "/data/" in name}))
    refused(tmp_path / "less.pth")
    torch.save(state(), tmp_path / "cut.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-100])
    refused(tmp_path / "cut.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth")
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(MAX_WEIGHTS_BYTES + 1)
    assert says(refused(tmp_path / "large.pth"), MAX_WEIGHTS_BYTES + 1, MAX_WEIGHTS_BYTES)


def test_a_plain_state_dict_of_half_or_double_precision_is_read(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: tensor.to(dtype) for name, tensor in state().items()}, tmp_path / "model.pth")
        assert load_model(tmp_path / "model.pth").conv1.weight.dtype == torch.float32


def test_safetensors_that_say_too_much_are_refused(tmp_path):
    for header in ({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}},
                   {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}, {"a": 7}, [], None):
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        refused(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 100 << 20) + b"{")
    os.truncate(tmp_path / "a.safetensors", MAX_WEIGHTS_BYTES + 1)
    refused(tmp_path / "a.safetensors")


CONFIGS = [{"kernels": [10**9, 1, 5]}, {"filters": [10**9, 2]}, {"channels": 3}, {"residual": "false"}, {"residual": 1}]


@pytest.mark.parametrize("change", CONFIGS, ids=repr)
def test_a_config_that_is_not_the_tensors_is_refused_before_a_network_is_made(tmp_path, change):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(state(), about(**change)))
    assert says(refused(tmp_path / "a.safetensors"), *change, *change.values())


@pytest.mark.parametrize("text", ["[" * 100_000, "7", "{", '"a"', "[1]"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(state(), {"srcnn": text}))
    refused(tmp_path / "a.safetensors")


def test_a_pipe_in_place_of_weights_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match="model.pth"):
        load_model(tmp_path / "model.pth")


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"loss": 1}', '{"samples": "<b>"}', '{"samples": [1]}', "[" * 10_000,
                                  '{"samples": 1, "val/psnr": 1e300}', '{"samples": true}'])
def test_numbers_of_a_run_that_are_none_are_refused_with_its_name(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"samples": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_metrics(tmp_path)


def test_a_validation_that_lacks_a_number_is_a_row_all_the_same():
    assert "| 1 | nan | 30.00 |" in results_table([{"samples": 1, "val/psnr": 30.0}])


def test_the_report_escapes_what_it_shows(tmp_path):
    table = results_table([{"samples": 1, "val/psnr": 30.0}]) + "| <script>alert(1)</script> | \"'&< |\n"
    page = html_page("<script>alert(2)</script>\"'", table, tmp_path)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page


YAML = {
    "laughs": "a: &a [x, x]\n" + "".join(f"b{it}: &b{it} [*{f'b{it - 1}' if it else 'a'}, *a]\n" for it in range(30)),
    "recursive": "photos: &a [*a]\n",
    "merged": "a: &a {x: 1}\nb: {<<: *a}\n",
    "deep": "a: " + "[" * 50 + "]" * 50,
    "deeper": "a: " + "[" * 10_000 + "]" * 10_000,
    "long": "a: " + "x" * (2 << 20),
    "no text": "a: \x00",
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_would_grow_is_refused(tmp_path, kind):
    (tmp_path / "a.yaml").write_text(YAML[kind])
    with pytest.raises(InvalidInput, match="a.yaml"):
        read_yaml(tmp_path / "a.yaml")


class Redirecting(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        body = self.server.body
        self.send_response(302 if self.server.target else 206 if "Range" in self.headers else 200)
        if self.server.target:
            self.send_header("Location", self.server.target + self.path)
            body = b""
        self.send_header("Content-Range", f"bytes 0-9/{len(body)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(target="", body=b"x" * 10):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
        server.target, server.body, server.seen = target, body, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("target", ["file:///etc", "ftp://127.0.0.1", "pipe:cat "])
def test_a_redirection_to_another_kind_of_address_is_not_followed(serve, target):
    server = serve(target)
    with pytest.raises((ReadFailed, FileNotFoundError)):
        open_storage(f"http://127.0.0.1:{server.server_port}", HASTY).read("passwd")


def test_user_and_password_do_not_go_to_another_host(serve):
    other = serve()
    server = serve(f"http://localhost:{other.server_port}")
    open_storage(f"http://user:hidden@127.0.0.1:{server.server_port}", HASTY).read("a.tar")
    assert other.seen and "hidden" not in str(other.seen)


def test_more_than_was_asked_for_is_not_listened_to(serve):
    server = serve(body=b"x" * (64 << 20))
    storage = open_storage(f"http://127.0.0.1:{server.server_port}", HASTY)
    with pytest.raises(ReadFailed, match=facts("a.tar", 10)):
        storage.read_range("a.tar", 0, 10)
    with pytest.raises(ReadFailed, match=facts("a.tar", 100)):
        storage.read("a.tar", 100)


HOST = "127.0.0.1:{port}"
SECRET = [f"http://user:hid@den@{HOST}/x", f"http://user:hidden@{HOST}/x", f"http://{HOST}/x?sig=hidden",
          "s3://?key=hidden", "http://user:hidden@127.0.0.1:99999/x", "https://user:hidden@", "http://[::1/x?t=hidden"]


@pytest.mark.parametrize("url", SECRET)
def test_no_error_of_reading_or_checking_tells_a_secret(serve, url, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    url = url.format(port=serve(body=b"{}").server_port)
    for read in (lambda: ShardDataset(url, access=HASTY), lambda: list(verify_shards(url, HASTY)),
                 lambda: open_storage(url, HASTY).read_range("a.tar", 0, 5)):
        with pytest.raises((ValueError, OSError)) as caught:
            read()
        told = "".join(traceback.format_exception(caught.value)[-1:]) + str(caught.value) + caplog.text
        assert "hid" not in told and "den@" not in told


def test_an_empty_split_behind_an_address_tells_no_secret(tmp_path):
    shards = small_shards(tmp_path, num_train=1, num_val=1)
    manifest = json.loads((shards / "val/manifest.json").read_text()) | {"shards": [], "photos": None}
    handler = type("Files", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *it: handler(*it, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(ValueError, match="--val") as caught:
        ShardDataset(f"http://user:hidden@127.0.0.1:{server.server_port}", access=HASTY)
    assert "hidden" not in str(caught.value)
    server.shutdown()
    server.server_close()

"""Which loaders are measured, over what, and with how many workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Loader:
    """One line of the table.

    Attributes:
        script: the file in benchmarks/loading/peers.
        packages: what pip installs into the loader's own environment; none: the one the benchmark runs in.
        encoding: of the shards it reads, or is prepared from.
        prepared: whether it has a format of its own.
        server: what the shards are read from; "" is a folder.
        in_main_process: whether no worker at all is a choice.
    """

    name: str
    kind: Literal["ours", "peer", "download"]
    script: str
    packages: tuple[str, ...] = ()
    encoding: Literal["npy", "png"] = "npy"
    prepared: bool = False
    server: Literal["", "http", "s3"] = ""
    in_main_process: bool = True

    def num_workers(self, cores: int) -> list[int]:
        """What is tried before the measurement, the best is kept."""
        if self.kind == "download":
            return [0]
        few = [0, 1, 2] if cores <= 2 else [0, cores // 4, cores // 2, cores]
        return few if self.in_main_process else [max(1, count) for count in few[1:]]


OURS, WEBDATASET_NPY, SOURCE = "srcnn npy", "webdataset npy", "source project"
LOADERS = (
    Loader(OURS, "ours", "ours", in_main_process=False),
    Loader("srcnn png", "ours", "ours", encoding="png", in_main_process=False),
    Loader(SOURCE, "peer", "source", prepared=True),
    Loader(WEBDATASET_NPY, "peer", "wds", ("webdataset",)),
    Loader("webdataset png", "peer", "wds", ("webdataset",), encoding="png"),
    Loader("mosaicml-streaming", "peer", "mds", ("mosaicml-streaming",), prepared=True),
    Loader("litdata", "peer", "litdata_chunks", ("litdata",), prepared=True),
    Loader("megatron-energon", "peer", "energon", ("megatron-energon",), prepared=True),
    Loader("grain", "peer", "grain_records", ("grain", "array_record"), prepared=True),
    Loader("spdl", "peer", "spdl_threads", ("spdl",), in_main_process=False),
    Loader("srcnn npy, http", "ours", "ours", server="http", in_main_process=False),
    Loader("download, http", "download", "download", server="http"),
    Loader("srcnn npy, s3", "ours", "ours", server="s3", in_main_process=False),
    Loader("download, s3", "download", "download", server="s3"),
)

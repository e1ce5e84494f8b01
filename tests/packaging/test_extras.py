"""What a plain `pip install` can do, without the packages of the extras and without what only Unix has."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from messages import facts
from PIL import Image
from small import draw_photo

from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra

ROOT = Path(__file__).parents[2]
MODULES = {"docstring-parser": "docstring_parser", "huggingface-hub": "huggingface_hub", "mlflow-skinny": "mlflow",
           "pillow-heif": "pillow_heif",
           "wandb-workspaces": "wandb_workspaces"}  # where the name to import is not that of the distribution
UNIX = ["fcntl", "resource", "pwd", "grp", "termios"]
UNIX_NAMES = ["os.O_CLOEXEC", "os.O_NONBLOCK", "os.O_NOFOLLOW", "os.O_DIRECTORY", "os.pread", "os.preadv", "os.statvfs",
              "os.posix_fadvise", "os.fork", "os.geteuid", "os.sched_getaffinity", "signal.SIGUSR1", "signal.SIGUSR2",
              "signal.SIGHUP", "signal.SIGKILL"]
# Runs commands, an argument each, in a process in which some modules cannot be found.
PROGRAM = """
import os, signal, sys
import torch
for name in sys.argv[1].split():
    sys.modules[name] = None
for name in sys.argv[2].split():
    module, _, name = name.partition(".")
    delattr(sys.modules[module], name)
from srcnn.__main__ import main
sys.exit(max([0, *(main(words.split()) for words in sys.argv[3:])]))
"""


def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def module_of(requirement):
    name = re.match(r"[\w-]+", requirement)[0]
    return MODULES.get(name.replace("_", "-"), name)


def extras():
    """The modules of each extra."""
    return {name: [module_of(line) for line in lines.split("\n") if line and not line.startswith("srcnn[")]
            for name, lines in setup()["options.extras_require"].items() if name != "test"}


def plain(folder, *commands):
    """Runs commands without any extra."""
    absent = [*UNIX, *(module for modules in extras().values() for module in modules)]
    words = [sys.executable, "-c", PROGRAM, " ".join(absent), " ".join(UNIX_NAMES), *commands]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)


def test_photos_are_restored_and_enlarged_without_any_extra_and_without_unix(tmp_path):
    Image.fromarray(draw_photo(3, 61, 83)).save(tmp_path / "old.jpg", quality=20)
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_photo(3, 61, 83)).save(tmp_path / "photos/clean.png")
    done = plain(tmp_path, "restore old.jpg", "upscale old.jpg --scale 2", "compare old.jpg -o look.png",
                 "score photos", "models", "configs")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "old_restored.jpg").size == (83, 61)
    assert Image.open(tmp_path / "old_x2.jpg").size == (166, 122)
    assert "port 99999" in plain(tmp_path, "demo --port 99999").stderr  # the page is served, where the port is one


def test_a_command_whose_extra_is_missing_says_how_to_install_it(tmp_path):
    pixels = np.arange(61 * 83 * 3, dtype=np.uint16).reshape(61, 83, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(pixels))
    (tmp_path / "c.jxl").write_bytes(imagecodecs.jpegxl_encode(pixels.astype(np.uint8)))
    commands = {"train": "train", "shards": "train", "doctor": "train", "report .": "train", "verify-shards .": "train",
                "sync .": "train", "dashboard": "train", "export srcnn-915-q20 --onnx q.onnx": "export",
                "push-shards . me/tiles": "hub",
                "restore a.tif": "formats", "restore b.png": "formats", "restore c.jxl": "formats"}
    done = plain(tmp_path, *(command for command in commands if command != "train"))  # which ends the process
    lines = [line for line in done.stderr.splitlines() if "pip install" in line]
    found = [re.search(r"srcnn\[(\w+)\]", line)[1] for line in lines]
    assert found == [name for command, name in commands.items() if command != "train"], done.stderr
    done = plain(tmp_path, "train --config demo.yaml")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install 'srcnn[train]'" in done.stderr


@pytest.mark.parametrize("module", ["shards", "srcnn.training", "launch.train", "launch.benchmark"])
def test_a_module_whose_extra_is_missing_says_so_in_one_line(tmp_path, module):
    program = "import runpy, sys\nfor name in sys.argv[1].split(): sys.modules[name] = None\n"
    program += f"sys.argv = ['{module}', '--photos', 'x']; runpy.run_module('{module}', run_name='__main__')"
    words = [sys.executable, "-c", program, " ".join(extras()["train"])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install 'srcnn[train]'" in done.stderr


def test_the_network_of_a_shipped_name_needs_no_client_of_the_hub_and_one_on_the_hub_does(tmp_path):
    program = ("import sys; sys.modules['huggingface_hub'] = None; from srcnn import SRCNN\n"
               "SRCNN.from_pretrained('srcnn-915-q20').save_pretrained('saved'); SRCNN.from_pretrained('saved')\n"
               "SRCNN.from_pretrained('someone/else')")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "UserError" in done.stderr.splitlines()[-1] and "pip install 'srcnn[hub]'" in done.stderr.splitlines()[-1]


def test_only_a_package_that_is_not_there_is_an_extra_that_is_missing():
    for name in ("srcnn.nothing", ""):
        with pytest.raises(ModuleNotFoundError), extra("train"):
            raise ModuleNotFoundError(name=name)
    with pytest.raises(ImportError, match="broken"), extra("train"):
        raise ImportError("broken", name="accelerate")
    with pytest.raises(UserError, match="^needs Python's module fcntl, [^']*$"), extra("train"):
        raise ModuleNotFoundError(name="fcntl")
    with pytest.raises(UserError, match=facts("package", "pip install 'srcnn[train]'")), extra("train"):
        import package_that_is_nowhere.inside  # noqa: F401


def test_all_are_all():
    names = set(setup()["options.extras_require"]) - {"all", "test", "fuzz", "docs"}
    listed = re.search(r"srcnn\[(.*)\]", setup()["options.extras_require"]["all"])[1].split(",")
    assert set(listed) == names - {"heic"} and "pillow_heif" in extras()["formats"]


def test_every_extra_that_a_message_or_a_page_names_is_there():
    sources = [path for top in ("srcnn", "shards", "launch", "docs", "README.md", "Dockerfile")
               for path in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*.*"))
               if path.suffix in (".py", ".md", ".sbatch", ".sh", "")]
    named = {name for path in sources for listed in re.findall(
        r"(?:srcnn|'\.)\[([\w,]+)\]", path.read_text(encoding="utf-8")) for name in listed.split(",")}
    named |= {name for path in sources
              for name in re.findall(r'extra\("([a-z]\w*)"\)', path.read_text(encoding="utf-8"))}
    assert len(named) > 5 and named <= set(setup()["options.extras_require"])

"""The package as pip installs it: a wheel made of the sdist, in an environment of its own, outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from messages import says
from PIL import Image
from small import draw_photo, write_photos

ROOT = Path(__file__).parents[2]
SOURCES = ("srcnn", "shards", "launch", "configs", "docs", "tests", "benchmarks", ".ci")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "Makefile",
         "mkdocs.yml", "Dockerfile", ".dockerignore")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "built", "*.egg-info")
EVERY_MODULE = """
import importlib, pkgutil, shards, srcnn
names = [found.name for one in (srcnn, shards) for found in pkgutil.walk_packages(one.__path__, one.__name__ + ".")]
print(len([importlib.import_module(name) for name in names if not name.endswith("__main__")]), srcnn.__file__)
"""
pytestmark = pytest.mark.slow


def build(kind, folder, out):
    """Calls a hook of the build backend as pip does; returns the path of what it built."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=NOT_SOURCES)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "checkout")
    return build("sdist", folder / "checkout", folder)


@pytest.fixture(scope="module")
def unpacked(sdist):
    with tarfile.open(sdist) as file:
        file.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked):
    return build("wheel", unpacked, unpacked.parent)


@pytest.fixture(scope="module")
def installed(wheel):
    """Runs a program of an environment that has the wheel and, from this environment, all packages but srcnn."""
    venv, work = wheel.parent / "venv", wheel.parent / "work"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = venv / "bin/python"
    packages = Path(subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                                   capture_output=True, text=True).stdout.strip())
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may lead to a checkout
    subprocess.run([sys.executable, *install], check=True, timeout=120, env=without)
    # A path without the .pth files in it: these may lead to a checkout.
    (packages / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))

    def run(*words, status=0):
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([venv / "bin" / words[0], *map(str, words[1:])], cwd=work, capture_output=True, text=True,
                              timeout=300, env=environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"})
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run, work


def modules(root):
    return {path.relative_to(root).as_posix() for top in ("srcnn", "shards") for path in (root / top).rglob("*.py")}


def test_an_editable_installation_is_found_beside_a_checkout_called_srcnn(unpacked, tmp_path):
    checkout = shutil.copytree(unpacked, tmp_path / "beside/srcnn")
    with zipfile.ZipFile(build("editable", checkout, tmp_path)) as file:
        file.extractall(tmp_path / "packages")
    code = f"import site; site.addsitedir({str(tmp_path / 'packages')!r}); import srcnn, shards; print(srcnn.__file__)"
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=checkout.parent, env=without, capture_output=True,
                          text=True, timeout=60)
    assert done.stdout.strip() == str(checkout / "srcnn/__init__.py"), done.stderr


def test_the_wheel_holds_every_module_config_and_weight_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"srcnn/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    weights = {f"srcnn/weights/{path.name}" for path in (ROOT / "srcnn/weights").iterdir()}
    page = {f"srcnn/commands/page/{path.name}" for path in (ROOT / "srcnn/commands/page").iterdir()}
    expected = modules(ROOT) | configs | weights | page | {"srcnn/py.typed", "srcnn/photos/benchmark_sets.json"}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_sdist_holds_what_its_own_tests_and_make_need(unpacked):
    for name in (*FILES, "launch/k8s/base/job.yaml", "tests/conftest.py", "docs/pictures/colorado.jpg", ".ci/run"):
        assert (unpacked / name).is_file(), name
    assert modules(unpacked) == modules(ROOT)


def test_the_text_for_an_index_has_no_link_that_leads_nowhere_there(wheel):
    with zipfile.ZipFile(wheel) as file:
        text = file.read(f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/METADATA").decode()
    assert "](docs/" not in text and "![" not in text and says(text, "srcnn restore", "License: Apache-2.0")


def test_every_module_can_be_imported_and_comes_from_the_wheel(installed):
    run, _ = installed
    number, path = run("python", "-c", EVERY_MODULE).split()[-2:]
    assert int(number) > 100 and not Path(path).is_relative_to(ROOT)


def test_photos_become_shards_a_network_and_a_restored_photo(installed):
    run, work = installed
    write_photos(work / "photos", 4, 149, 203)
    made = run("srcnn", "shards", "--config", "shards.yaml", "--photos", "photos", "--out", "data", "--resize", "none",
               "--tile_pixels", "32", "--val_fraction", "0.5", "--num_workers", "2")
    assert says(made, "pairs", "train")
    settings = ["--config", "debug.yaml", "--shards", "data", "--total_samples", "64", "--batch_size", "8",
                "--overfit_tiles", "0", "--trackers", "[]"]
    run("srcnn", "train", *settings, "--run", "run")
    run("srcnn", "configs", "accelerate/cpu2.yaml", "-o", "mine")
    run("python", "-m", "accelerate.commands.launch", "--config_file", "mine/cpu2.yaml", "--main_process_port", "0",
        "-m", "srcnn.training", *settings, "--run", "run 2")
    run("srcnn", "train", *settings, "--run", "run 3", "--processes", "2")
    assert says(run("srcnn", "datasets"), "live1_y", 29)
    for folder in ("run", "run 2", "run 3"):
        points = [json.loads(line) for line in (work / folder / "metrics.jsonl").read_text().splitlines()]
        assert max(point["samples"] for point in points) == 64
    Image.fromarray(draw_photo(7, 101, 167)).save(work / "old.jpg", quality=20)
    run("srcnn", "restore", "old.jpg", "-o", "own.png", "--model", "run")
    run("srcnn", "restore", "old.jpg")
    for name in ("own.png", "old_restored.jpg"):
        with Image.open(work / name) as photo:
            assert photo.size == (167, 101)
    assert says(run("srcnn", "doctor", *settings, "--run", "run"), "shards", "ok")

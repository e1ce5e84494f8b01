"""The imports go one way."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(path):
    """Top-level packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def test_launch_and_shards_import_srcnn_and_not_the_other_way_round():
    sources = list((ROOT / "srcnn").rglob("*.py"))
    assert len(sources) > 50
    for path in sources:
        assert not {"launch", "shards", "benchmarks", "tests"} & set(imported(path)), path


def test_no_launch_file_hides_a_package_it_imports():
    names = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert not names & {"wandb", "accelerate", "torch", "webdataset", "evaluate", "srcnn", "shards"}

"""The rooms of srcnn/: which may import which, how long a module may be, and what stays light to import."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {  # each may import itself and these
    "runtime": "",
    "photos": "runtime",
    "data": "photos runtime",
    "models": "photos runtime",
    "tracking": "runtime",
    "restoration": "models data photos runtime",
    "training": "restoration models data tracking photos runtime",
    "commands": "training restoration models data tracking photos runtime",
}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 450, 60
SOURCES = [path for top in ("srcnn", "shards", "launch") for path in (ROOT / top).rglob("*.py")]


def imported(tree):
    """Full names of the modules that a file imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_below_it(room):
    allowed = {room, *ROOMS[room].split()}
    sources = list((ROOT / "srcnn" / room).rglob("*.py"))
    assert len(sources) > 5
    for path in sources:
        rooms = {name.split(".")[1] for name in imported(parsed(path)) if name.startswith("srcnn.")}
        assert rooms & ROOMS.keys() <= allowed, path


def test_every_folder_of_srcnn_is_a_room():
    folders = {path.parent.name for path in (ROOT / "srcnn").rglob("__init__.py")} - {"srcnn"}
    assert folders == ROOMS.keys()
    assert all(len(parsed(ROOT / "srcnn" / room / "__init__.py").body) == 1 for room in ROOMS), "a docstring alone"


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    imports = {name: {module for full in imported(parsed(path)) for module in (full, full.rpartition(".")[0])
                      if module in names and module != name} for name, path in names.items()}
    while free := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in free}
    assert not imports


def test_launch_and_shards_import_srcnn_and_not_the_other_way_round():
    for path in (ROOT / "srcnn").rglob("*.py"):
        tops = {name.partition(".")[0] for name in imported(parsed(path))}
        assert not {"launch", "shards", "benchmarks", "tests"} & tops, path


# Interfaces that their libraries do not document, and the one file that may use each library's.
INTERNALS = {
    "srcnn/runtime/torch_internals.py":
        r"torch(\.\w+)*\._[a-z]|torch\.ops\.|\._metadata\b|\.found_inf\b|fx\.experimental"
        r"|elastic\.multiprocessing",
    "srcnn/photos/pillow_internals.py": r"\.layer\b|vars\(image\)|\.applist\b|MAXBLOCK|PIL(\.\w+)*\._[a-z]",
    "srcnn/tracking/wandb_tracker.py": r"\bx_[a-z]+_[a-z]+\b|\.starting_step\b|\.lastHistoryStep\b|wandb\.proto",
    "launch/pod.py": r"accelerate\.commands\.launch import|accelerate(\.\w+)*\._[a-z]",
}


@pytest.mark.parametrize("only", INTERNALS)
def test_what_a_library_does_not_document_is_used_in_one_file(only):
    assert re.search(INTERNALS[only], (ROOT / only).read_text(encoding="utf-8"))
    others = [path for path in SOURCES if path != ROOT / only]
    found = [path for path in others if re.search(INTERNALS[only], code_of(path))]
    assert not found


def code_of(path):
    """A file's source without comments and docstrings."""
    return ast.unparse(ast.fix_missing_locations(WithoutStrings().visit(parsed(path))))


class WithoutStrings(ast.NodeTransformer):
    def visit_Expr(self, node):
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if is_text else self.generic_visit(node)


def test_no_launch_file_hides_a_package_it_imports():
    names = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert not names & {"wandb", "accelerate", "torch", "webdataset", "evaluate", "srcnn", "shards"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name

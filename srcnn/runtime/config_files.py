"""The configs that are shipped with the package: found by name, listed, copied."""

from __future__ import annotations

from pathlib import Path

from srcnn.runtime.errors import UserError
from srcnn.runtime.files import write_file

_PACKAGE = Path(__file__).parents[1]
# In a checkout they lie beside srcnn/, and setup.py installs them within it.
CONFIGS = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


def shipped_configs() -> dict[str, str]:
    """What each config is for, by its name, such as "train.yaml" or "accelerate/cpu2.yaml"."""
    paths = sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (path.parent, path.name))
    first_lines = {path: path.read_text(encoding="utf-8").partition("\n")[0] for path in paths}
    return {path.relative_to(CONFIGS).as_posix(): line.lstrip("# ") for path, line in first_lines.items()}


def find_config(name: str) -> Path:
    """The path of a config file: of the file that has this name, or else of the shipped config that has it."""
    path = Path(name)
    return CONFIGS / name if not path.exists() and name in shipped_configs() else path


def copy_config(name: str, folder: Path) -> Path:
    """Copies a shipped config into a folder, which is made if necessary; returns the path of the copy.

    Raises:
        UserError: there is no such config, or the file exists already.
    """
    if name not in shipped_configs():
        raise UserError(f"{name}: no such config; `srcnn configs` lists those there are")
    target = folder / Path(name).name
    if target.exists():
        raise UserError(f"{target} exists already, and is not overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(target, (CONFIGS / name).read_bytes())
    return target

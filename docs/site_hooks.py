"""What mkdocs.yml cannot say: pages made from the code and from files outside docs/, and links to these files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from srcnn.commands.training import CONFIG_CLASSES, config_class, schema_of
from srcnn.runtime.config_help import settings_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # files of the root that are pages
CODE = r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence)|`(?:[^`\n]|\n(?!\n))+`"  # a fenced block, or code within a line
LINK = re.compile(CODE + r"|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of PAGES, and the JSON schema of each kind of config."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for kind in CONFIG_CLASSES:
        files.append(File.generated(config, f"{kind}.schema.json", content=json.dumps(schema_of(kind), indent=1)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Writes the tables of config keys where a page asks for them, and mends links that lead out of docs/."""
    markdown = re.sub(r"<!-- keys: (\w+) -->.*", lambda found: _table(found[1]), markdown)
    sources = {name: source for source, name in PAGES.items()}
    folder = (ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent
    return mend_links(markdown, folder, str(config.repo_url or ""))


def mend_links(markdown: str, folder: Path, repository: str) -> str:
    """The text of a file in `folder` with its links as _link has them; what looks like a link in code is left alone."""
    def mended(found: re.Match[str]) -> str:
        link = found.group("picture", "text", "target")
        return found[0] if found["target"] is None else _link(*link, folder, repository)

    return LINK.sub(mended, markdown)


def _table(kind: str) -> str:
    """The keys of a kind of config with what to give for them, their defaults and texts, as `--help-all` has them."""
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for setting in settings_of(config_class(kind)):
        key, default, text, expected = (part.replace("|", r"\|") for part in (
            setting.key, setting.default, setting.text, setting.expected))
        lines.append(f"| `{key}` | {expected} | `{default}` | {text} |")
    return "\n".join(lines)


def _link(picture: str, text: str, target: str, folder: Path, repository: str) -> str:
    """A link of a file in `folder`, as its page has it: to a page, or to a file of the repository.

    Where the text is the name of the page, as in [training.md](training.md), it becomes the page's title.
    """
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"\w+:", target):
        return f"{picture}[{text}]({target})"
    file = (folder / path).resolve()
    if not file.exists():
        raise PluginError(f"{folder.relative_to(ROOT)}: a link to {target}, which does not exist")
    name = file.relative_to(ROOT).as_posix()
    if text == path and file.suffix == ".md":
        text = file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")  # the title of the page
    if file.is_relative_to(ROOT / "docs"):
        return f"{picture}[{text}]({os.path.relpath(file, ROOT / 'docs')}{mark}{anchor})" + _colab(file, repository)
    if name in PAGES:
        return f"[{text}]({PAGES[name]}{mark}{anchor})"
    return f"[{text}]({repository}/blob/main/{name})" if repository else text


def _colab(file: Path, repository: str) -> str:
    """After a link to a notebook, one that opens it in Colab, where the repository is on GitHub."""
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", repository)
    if file.suffix != ".ipynb" or not found:
        return ""
    address = f"https://colab.research.google.com/github/{found[1]}/blob/main/{file.relative_to(ROOT).as_posix()}"
    return f" ([open it in Colab]({address}))"

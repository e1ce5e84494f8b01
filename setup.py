"""What setup.cfg cannot say: configs/ is installed as srcnn/configs, and the readme of a package index stands alone."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^]]*\]\([^)]*\)\n\n\*.*?\n\n", "", readme, flags=re.DOTALL)  # pictures and their captions
readme = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)  # links into the repository

# An editable installation puts this folder on the path. What setuptools would do otherwise, a finder that comes last,
# loses to any folder called srcnn where Python is started: beside a checkout `import srcnn` gave an empty module.
editable = "editable_wheel" in sys.argv
configs, places = ([], {"": "."}) if editable else (["srcnn.configs"], {"srcnn.configs": "configs"})

setup(
    packages=[*find_packages(include=["srcnn", "srcnn.*", "shards"]), *configs],
    package_dir=places,
    long_description=readme,
)

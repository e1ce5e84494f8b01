"""What setup.cfg cannot say: configs/ is installed as srcnn/configs, and the readme of a package index stands alone."""

import re
from pathlib import Path

from setuptools import find_packages, setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^]]*\]\([^)]*\)\n\n\*.*?\n\n", "", readme, flags=re.DOTALL)  # pictures and their captions
readme = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)  # links into the repository

setup(
    packages=[*find_packages(include=["srcnn", "srcnn.*", "shards"]), "srcnn.configs"],
    package_dir={"srcnn.configs": "configs"},
    long_description=readme,
)

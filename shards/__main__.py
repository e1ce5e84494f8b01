"""`python -m shards`: the command `srcnn shards`."""

from __future__ import annotations

import sys

from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.streams import open_standard_streams


def main(arguments: list[str] | None = None, program: str = "python -m shards") -> int:
    """Runs the command; returns its exit status: that of `shards.command`, or 1 where the extra `train` is missing."""
    open_standard_streams()
    try:
        with extra("train"):
            from shards.command import main as make
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return make(sys.argv[1:] if arguments is None else arguments, program)


if __name__ == "__main__":
    sys.exit(main())

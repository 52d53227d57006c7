"""`python -m classification train …` as a file, which paddle.distributed.launch needs."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder, whose modules are not top-level ones

from classification.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

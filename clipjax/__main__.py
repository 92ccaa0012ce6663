"""`python -m clipjax` is the console script `clipjax`."""

import os
import sys

# `-m` puts the current folder before all that is installed: one that holds a dataset may hold an
# `absl.py` as well. Where clipjax itself is imported from it, it is the source tree.
if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and sys.path[:1] == [os.getcwd()]
    and not os.path.samefile(os.path.dirname(os.path.dirname(__file__)), sys.path[0])
):
    del sys.path[0]

from clipjax.cli.main import command

if __name__ == "__main__":
    command()

"""`python -m clipjax` is the console script `clipjax`."""

from clipjax.cli.main import run

if __name__ == "__main__":
    run()

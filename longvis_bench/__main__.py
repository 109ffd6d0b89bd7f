"""`longvis` and `python -m longvis_bench`."""

import sys


def main() -> None:
    """Run the command line; `--version` alone is answered here, without importing `cli`."""
    if sys.argv[1:] == ["--version"] and _show_version():
        return
    from longvis_bench.cli.app import main as run

    run()


def _show_version() -> bool:
    """Print the version, and return whether that worked; if not, the command line reports the error."""
    from longvis_bench.version import __version__

    try:
        print(f"longvis {__version__}", flush=True)
    except OSError:
        return False
    return sys.stdout is not None


if __name__ == "__main__":
    main()

"""`longvis` and `python -m longvis_bench`."""

from longvis_bench.cli.app import main

if __name__ == "__main__":
    main()

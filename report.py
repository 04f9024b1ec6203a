"""Compare runs: python report.py logs/train/multiruns/DATE/TIME_NAME --reach 0.8."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Print the table of `priorzero.app.compare.compare`."""
    parser = argparse.ArgumentParser(description="environment steps until runs reach a score, by name and seed")
    parser.add_argument("folder", type=Path, help="a sweep's folder, or any folder with runs below it")
    parser.add_argument("--reach", type=float, default=0.8, help="fraction of the maximum score (default 0.8)")
    parser.add_argument("--picture", type=Path, help="also write the learning curves to this PNG file")
    parser.add_argument("--until", type=int, help="environment steps that the picture shows (default: all)")
    arguments = parser.parse_args()
    from priorzero.app.compare import compare, plot_runs

    try:
        if arguments.picture:
            plot_runs(arguments.folder, arguments.picture, arguments.until)
        sys.stdout.write(compare(arguments.folder, arguments.reach) + "\n")
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

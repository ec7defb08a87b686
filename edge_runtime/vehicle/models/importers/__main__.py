"""`python -m edge_runtime.vehicle.models.importers --all --out DIR --cache DIR`.

Makes the model packages `DIR/<name>`; with `--demo-data DIR` also fetches the demo's inputs,
with `--synthetic DIR` the tiny generated models of tests and benches.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_runtime.contract.errors import EdgeError
from edge_runtime.vehicle.models.importers.data import fetch_demo_data
from edge_runtime.vehicle.models.importers.real import MODEL_NAMES, import_all, import_model
from edge_runtime.vehicle.models.importers.synthetic import write_all


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.vehicle.models.importers")
    parser.add_argument("names", nargs="*", help=f"models to make: {', '.join(MODEL_NAMES)}")
    parser.add_argument("--all", action="store_true", help="make every model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--demo-data", type=Path, help="also fetch the demo's inputs to here")
    parser.add_argument("--synthetic", type=Path, help="also generate the tiny models to here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status. Faults end as one line on stderr."""
    arguments = _arguments(argv)
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            data = None
            if arguments.demo_data is not None:
                data = pool.submit(fetch_demo_data, arguments.cache, arguments.demo_data, _say)
            if arguments.all:
                import_all(arguments.cache, arguments.out, _say)
            else:
                for name in arguments.names:
                    import_model(name, arguments.cache, arguments.out, _say)
            if arguments.synthetic is not None:
                write_all(arguments.synthetic, _say)
            if data is not None:
                data.result()
    except (EdgeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

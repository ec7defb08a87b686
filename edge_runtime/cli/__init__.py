"""The command line: the only composition root of the house.

Invariants
- A command imports the parts it composes, and only those: an idle car never loads rich,
  litestar, numpy or ONNX Runtime.
- Flags win over the environment (`EDGE_RUNTIME_<COMMAND>_<OPTION>`), the environment over the
  file named by `--config`, the file over the defaults. An unknown key is refused in all three.
- What a person did wrong is one line on stderr and an exit code (`exit_codes.py`), never a
  traceback. stdout carries results only.

Deliberately absent: settings that are read at import, and any decision: those are made in the
parts below.
"""


def main() -> None:
    """Run the command of `sys.argv` and exit with its code."""
    import sys

    from edge_runtime.cli.app import run

    sys.exit(run(sys.argv[1:]))

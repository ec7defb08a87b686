"""A process of the demo: one command of this package that dies with the demo.

`python -m edge_runtime.cli.demo.child PARENT_PID vehicle --id car-1 …` asks the kernel to kill
this process when the demo's process ends, however it ends, and then runs the command line that
follows. `subscriber` names the demo's own subscriber instead of a command.
"""

import signal
import sys

from edge_runtime.lifeline import die_with


def main(arguments: list[str]) -> int:
    """Run the rest of the arguments."""
    die_with(int(arguments[0]))
    # Ctrl-C reaches the whole process group; it is the demo that ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments[1] == "subscriber":
        from edge_runtime.cli.demo.subscriber import main as subscribe

        return subscribe(arguments[2:])
    from edge_runtime.cli.app import run

    return run(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

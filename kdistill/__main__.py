"""The `kdistill` command, and `python -m kdistill`."""

import os
import sys

from kdistill import UNSUPPORTED
from kdistill.console import interrupts


def main() -> None:
    """Run the command line. Ctrl-C ends it quietly, even while modules are imported."""
    if sys.platform == "win32":
        print(f"error: {UNSUPPORTED}", file=sys.stderr)
        raise SystemExit(1)
    interrupts.exit_at_once()
    from kdistill import cli

    try:
        cli.main()
    except SystemExit as stop:
        if stop.code == 130:  # Python would end the process by SIGINT whatever the status
            for stream in (sys.stdout, sys.stderr):
                if stream:
                    stream.flush()
            os._exit(130)
        raise
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()

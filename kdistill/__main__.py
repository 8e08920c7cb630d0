"""The `kdistill` command, and `python -m kdistill`."""

import os
import sys

from kdistill.console import interrupts


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly, also while the modules are imported."""
    interrupts.exit_at_once()
    from kdistill import cli

    try:
        cli.main()
    except SystemExit as stop:
        if stop.code == 130:  # after an interrupt, Python may end the process by SIGINT itself, whatever the status
            for stream in (sys.stdout, sys.stderr):
                if stream:
                    stream.flush()
            os._exit(130)
        raise
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()

"""Entry point of `python -m grokkit`."""

import sys

from grokkit.sweep.child_process import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    from grokkit.cli import main

    sys.exit(main())

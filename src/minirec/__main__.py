"""`python -m minirec`: the command line."""

import sys

from minirec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m minirec`: the command line."""

import sys

from minirec.cli.main import main

sys.exit(main())

"""`python -m hgt_infer` is the hgt-infer command."""

import sys

from hgt_infer.cli import main

if __name__ == "__main__":
    sys.exit(main())

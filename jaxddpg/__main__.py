"""`python -m jaxddpg`."""

import sys

from jaxddpg.cli import main

sys.exit(main())

"""`python -m jaxddpg`."""

import sys

from jaxddpg.cli.main import main

sys.exit(main())

"""``python -m fedsim.cli``."""

import sys

from fedsim.cli.commands import main

sys.exit(main())

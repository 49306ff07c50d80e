"""``python -m toolgym.cli`` is ``toolgym``."""

import sys

from toolgym.cli.main import main

sys.exit(main())

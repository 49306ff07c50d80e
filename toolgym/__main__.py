"""``python -m toolgym`` is the command ``toolgym``."""

from toolgym.cli.main import main

raise SystemExit(main())

# What Python runs in apsis.pyz first. Any Python can read it, so that an old one is told what to do.
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "error: apsis.pyz needs Python 3.11 or newer, and this is %d.%d; "  # noqa: UP031
        "run it by another one, as in: python3.12 apsis.pyz" % sys.version_info[:2]
    )

import unpack_apsis  # noqa: E402

unpack_apsis.run()

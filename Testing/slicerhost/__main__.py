# SPDX-License-Identifier: Apache-2.0
"""``python -m slicerhost --python-script FILE …``"""

from __future__ import annotations

import sys

from .application import main

sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""``python -m LiverXAILib`` is the same as ``liverxai``."""

import sys

from .cli import main

sys.exit(main())

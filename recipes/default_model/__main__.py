# SPDX-License-Identifier: Apache-2.0
"""``python -m recipes.default_model``: see :mod:`recipes.default_model.build`."""

import sys

from .build import main

if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""``python -m recipes.outlines``: see :mod:`recipes.outlines.train`."""

from .train import main

if __name__ == "__main__":
    main()

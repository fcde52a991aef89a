# SPDX-License-Identifier: Apache-2.0
"""``python -m recipes.clicks``: see :mod:`recipes.clicks.train`."""

from .train import main

if __name__ == "__main__":
    main()

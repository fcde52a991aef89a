# SPDX-License-Identifier: Apache-2.0
"""A test host for the Slicer module: Slicer's own C++ classes from the `slicer-core` wheel, without Qt.

It provides ``slicer.mrmlScene``, ``slicer.modules.<name>.logic()`` and ``slicer.app``, each backed by the same class as
in Slicer, and refuses everything that it does not implement. It is used by tests and by the scripts that make pictures;
the product never imports it.

* :func:`start` makes the host (one per process), :mod:`.iomanager` loads and saves;
* :mod:`.modules` loads a scripted module as Slicer does;
* ``python -m slicerhost --python-script FILE …`` runs a script as Slicer does (:mod:`.application`);
* :mod:`.rendering` shows slice and 3-D views off-screen by Slicer's displayable managers.
"""

from __future__ import annotations

from .host import Host, start

__all__ = ["Host", "start"]

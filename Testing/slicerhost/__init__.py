# SPDX-License-Identifier: Apache-2.0
"""A test host for the Slicer module: Slicer's own C++ classes from the `slicer-core` wheel, without Qt.

It publishes what a module finds in Slicer, namely ``slicer.mrmlScene``, ``slicer.modules.<name>.logic()`` and
``slicer.app``, each backed by the class that backs it in Slicer, and refuses everything that it does not really do.
It serves tests and the scripts that make pictures; the product never imports it.

* :func:`start` makes the host (one in a process), :mod:`.iomanager` loads and saves;
* :mod:`.modules` loads a scripted module as Slicer does;
* ``python -m slicerhost --python-script FILE …`` runs a script as Slicer does (:mod:`.application`);
* :mod:`.rendering` shows slice and 3-D views off-screen by Slicer's displayable managers.
"""

from __future__ import annotations

from .host import Host, start

__all__ = ["Host", "start"]

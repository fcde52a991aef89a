# SPDX-License-Identifier: Apache-2.0
"""Computation in a child process, so that a GUI program never blocks.

:class:`~LiverXAILib.worker.client.WorkerClient` is used by the GUI; it needs neither Qt nor torch.
:mod:`LiverXAILib.worker.server` is the child process; :mod:`LiverXAILib.worker.wire` defines their messages.
"""

from __future__ import annotations

from .client import Event, WorkerClient, WorkerError

__all__ = ["Event", "WorkerClient", "WorkerError"]

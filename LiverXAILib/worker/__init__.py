# SPDX-License-Identifier: Apache-2.0
"""The computation in a child process: a program with a window starts it, asks, and never waits.

:class:`~LiverXAILib.worker.client.WorkerClient` is the side of the window; it needs neither Qt nor torch.
:mod:`LiverXAILib.worker.server` is the child process; :mod:`LiverXAILib.worker.wire` says what goes between them.
"""

from __future__ import annotations

from .client import Event, WorkerClient, WorkerError

__all__ = ["Event", "WorkerClient", "WorkerError"]

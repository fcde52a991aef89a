# SPDX-License-Identifier: Apache-2.0
"""The status line of the panel: what is happening, what went wrong, and what to do next."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from .._version import __version__
from ..errors import LiverXAIError
from .installation import installed_versions
from .state import PanelState


class StatusLine:
    """Shows notes, or an error with details that can be copied for a bug report."""

    def __init__(self, state: PanelState) -> None:
        self._ui = state.ui
        self.notes: list[str] = []
        self.details = ""

    def show(self, *sentences: str) -> None:
        """Show these sentences; without any, the panel shows what to do next."""
        self.details, self.notes = "", [sentence for sentence in sentences if sentence]
        self._ui.statusLabel.text = "\n".join(self.notes)

    def show_step(self, text: str) -> None:
        """Show the current step."""
        self._ui.statusLabel.text = text

    def show_error(self, error: BaseException, details: str = "") -> None:
        """Show what went wrong; the details are for the button that copies them."""
        self.notes = []
        self.details = details or "".join(traceback.format_exception(error))
        known = isinstance(error, LiverXAIError)
        sentence = str(error) if known else _("An unexpected error occurred: {error}.").format(error=error)
        self._ui.statusLabel.text = f"⚠ {sentence}"

    def copy_details(self, about: Sequence[str]) -> None:
        """Copy what a bug report needs to the clipboard, without anything about the patient.

        :param about: further lines: model, device, question.
        """
        lines: list[Any] = [
            f"LiverXAI {__version__}, Slicer {getattr(slicer.app, 'applicationVersion', '?')}",
            f"Python {platform.python_version()}, {platform.platform()}",
            *installed_versions(),
            *about,
            "",
            self.details,
        ]
        slicer.app.clipboard().setText("\n".join(lines))
        self._ui.detailsButton.text = _("Copied")

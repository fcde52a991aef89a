# SPDX-License-Identifier: Apache-2.0
"""Models that are not on this computer yet: downloaded, or imported from a zip file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from .model_choice import ModelChoice
from .state import PanelState
from .status import StatusLine
from .tasks import Steps, TaskRunner


class ModelFetching:
    """Downloads or imports the chosen model.

    :param changed: called when the parameter node names another model.
    """

    def __init__(
        self,
        state: PanelState,
        status: StatusLine,
        models: ModelChoice,
        runner: TaskRunner,
        changed: Callable[[], None],
    ) -> None:
        self._state, self._status, self._models, self._runner = state, status, models, runner
        self._changed = changed

    def on_fetch(self) -> None:
        """Download or import the chosen model, after the user has accepted its license terms."""
        parameters, client = self._state.parameters, self._runner.client
        if self._models.is_zip_file:
            self._runner.start(lambda: client.import_model(parameters.modelFolder), self._show_imported)
            return
        terms = self._models.license_terms()
        if terms and not slicer.util.confirmOkCancelDisplay(
            _("The model's license requires you to accept:\n\n{terms}\n\nDo you accept?").format(terms=terms),
            "LiverXAI",
        ):
            self._status.show(_("The license was not accepted, so nothing was downloaded."))
            return
        self._runner.start(lambda: client.download(parameters.model, accept_license=bool(terms)), self._show_downloaded)

    def _show_downloaded(self, result: Any) -> Steps:
        self._models.show()
        yield None
        return [_("The model is ready. Press Apply.")]

    def _show_imported(self, result: Any) -> Steps:
        self._models.fill()
        self._state.parameters.model = result["name"]
        self._changed()
        yield None
        return [_("The model is ready. Press Apply.")]

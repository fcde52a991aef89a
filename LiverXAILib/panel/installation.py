# SPDX-License-Identifier: Apache-2.0
"""Python packages that Slicer does not include: find the missing ones and install them."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

import slicer
from slicer.i18n import tr as _

from ..errors import LiverXAIError

#: Packages that segmenting needs and Slicer does not include; torch comes from the extension "PyTorch".
REQUIRED_PACKAGES = ("torch", "safetensors", "requests", "platformdirs")
#: Further packages that writing a report needs.
REPORT_PACKAGES = (*REQUIRED_PACKAGES, "matplotlib", "jinja2")


def missing_packages(names: Sequence[str] = REQUIRED_PACKAGES) -> list[str]:
    """The packages of `names` that are not installed."""
    return [name for name in names if find_spec(name) is None]


def installed_versions(names: Sequence[str] = REQUIRED_PACKAGES) -> list[str]:
    """Return a line with the version of each package; "-" for a missing one."""
    return [f"{name} {metadata.version(name) if find_spec(name) else '-'}" for name in names]


def require_packages(names: Sequence[str] = REQUIRED_PACKAGES) -> None:
    """Raise an error that says what to install if a package is missing; nothing is installed.

    :raises LiverXAILib.errors.LiverXAIError: a package is missing.
    """
    missing = missing_packages(names)
    if "torch" in missing:
        raise LiverXAIError(
            _("PyTorch is not installed in Slicer. Install the extension 'PyTorch' and, in its module, PyTorch itself.")
        )
    if missing:
        raise LiverXAIError(
            _(
                "Python packages are missing in Slicer: {names}. Install them with slicer.util.pip_install({names!r})."
            ).format(names=" ".join(missing))
        )


def install_packages(names: Sequence[str], wheel_folder: str = "") -> None:
    """Install Python packages into Slicer without a dialog: ask the user before calling it.

    torch is installed by the extension "PyTorch". Slicer's own numpy and SimpleITK are pinned to their present version.

    :param wheel_folder: a folder with wheels to install from, for computers without internet; "": the internet.
    :raises LiverXAILib.errors.LiverXAIError: an installation failed; the message says what to try.
    """
    wanted = list(names)
    if "torch" in wanted and not wheel_folder:
        wanted.remove("torch")
        _install_torch()
    if wanted:
        _install_by_pip(wanted, wheel_folder)
    importlib.invalidate_caches()


def _install_torch() -> None:
    """Install torch through Slicer's extension "PyTorch", which chooses the build for this computer."""
    try:
        import PyTorchUtils
    except ImportError as error:
        raise LiverXAIError(
            _("PyTorch comes with Slicer's extension 'PyTorch'. Install it in the Extensions Manager and restart.")
        ) from error
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=">=2.6")
    except Exception as error:  # from pip, light-the-torch, or the first import
        raise LiverXAIError(
            _(
                "PyTorch could not be installed ({error}). Slicer's Python console shows why. Is there a proxy or "
                "a firewall? Try the module 'PyTorch Utils', or choose a folder with wheels under Advanced > "
                "Packages."
            ).format(error=error)
        ) from error
    if torch is None:
        raise LiverXAIError(_("PyTorch was not installed. Try again, or install it in the module 'PyTorch Utils'."))


def _install_by_pip(wanted: list[str], wheel_folder: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        pins = [f"{name}=={metadata.version(name)}\n" for name in ("numpy", "SimpleITK") if find_spec(name)]
        constraints.write_text("".join(pins), encoding="utf-8")
        try:
            if wheel_folder:
                slicer.util.pip_install(
                    ["--no-index", "--find-links", wheel_folder, "--constraint", str(constraints), *wanted]
                )
            elif find_spec("slicer.packaging"):
                importlib.import_module("slicer.packaging").pip_ensure(
                    wanted, constraints=constraints, prompt_install=False, requester="LiverXAI", skip_in_testing=False
                )
            else:
                slicer.util.pip_install(["--constraint", str(constraints), *wanted])
        except (CalledProcessError, RuntimeError) as error:
            raise LiverXAIError(
                _(
                    "{names} could not be installed ({error}). Slicer's Python console shows why. Is there a proxy or "
                    "a firewall? Without internet, put wheels into a folder and choose it under Advanced > Packages."
                ).format(names=", ".join(wanted), error=error)
            ) from error

# SPDX-License-Identifier: Apache-2.0
"""Networks: plain torch modules whose blocks have names, so that they can be explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import ModelError
from .obelisk import ObeliskUNet
from .unet import UNet, default_layer

#: The networks that a model card may name. A card is data: it cannot refer to code outside this list.
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {"UNet": UNet, "ObeliskUNet": ObeliskUNet}


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network that a model card names, with newly initialized weights.

    :param name: a key of :data:`NETWORKS`.
    :param arguments: keyword arguments of that class.
    :raises LiverXAILib.errors.ModelError: unknown name, or arguments that the class does not accept.
    """
    if name not in NETWORKS:
        raise ModelError(f"The network {name!r} is unknown. LiverXAI has: {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"The network {name} cannot be built with {dict(arguments)}: {error}") from error


__all__ = ["NETWORKS", "ObeliskUNet", "UNet", "build_network", "default_layer"]

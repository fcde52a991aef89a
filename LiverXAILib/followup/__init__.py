# SPDX-License-Identifier: Apache-2.0
"""compare(): tracks lesions across two or more studies of one patient, and determines the response categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .comparing import compare
    from .findings import Comparison, Findings
    from .registration import Registration, RegistrationRefused, Subject, register
    from .response import choi_response, growth, mrecist_response, recist_response
    from .writing import write_comparison

__all__ = [
    "Comparison",
    "Findings",
    "Registration",
    "RegistrationRefused",
    "Subject",
    "choi_response",
    "compare",
    "growth",
    "mrecist_response",
    "recist_response",
    "register",
    "write_comparison",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Comparison": "findings",
        "Findings": "findings",
        "Registration": "registration",
        "RegistrationRefused": "registration",
        "Subject": "registration",
        "choi_response": "response",
        "compare": "comparing",
        "growth": "response",
        "mrecist_response": "response",
        "recist_response": "response",
        "register": "registration",
        "write_comparison": "writing",
    },
)

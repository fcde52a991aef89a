# SPDX-License-Identifier: Apache-2.0
"""What the project itself trains, from data to exported model. Not part of the wheel; run from a clone."""

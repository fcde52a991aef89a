# SPDX-License-Identifier: Apache-2.0
"""Training or fine-tuning a model on one's own data: ``liverxai train``."""

# SPDX-License-Identifier: Apache-2.0
"""Unattended analysis of many CTs: each is completed or its failure is recorded, whatever happens to the process.

The parent process finds the cases, distributes them and keeps the records; it does not import torch. Child processes
that hold the model do the work, so a crash affects one case and not the whole batch.
"""

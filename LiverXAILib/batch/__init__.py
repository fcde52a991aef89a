# SPDX-License-Identifier: Apache-2.0
"""Many CTs, unattended: each is done or its failure is recorded, whatever happens to the process.

The parent process finds the cases, hands them out and keeps the record; it imports no torch. The work is done by
child processes that hold the model, so that a crash takes one case with it and not the batch.
"""

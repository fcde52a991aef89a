# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of LiverXAI with seeded hostile and damaged files, records, messages and faults.

``python -m fuzz images --seed 1 --cases 500`` (with ``Testing`` on the Python path, or ``make fuzz``). Each kind is a
module with a class :class:`fuzz.kind.Kind`; cases run in child processes with limits on time and memory.
"""

# SPDX-License-Identifier: Apache-2.0
"""Check the pinned dependencies for known vulnerabilities with pip-audit; without a network this is skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_SECONDS = 300


def main() -> int:
    """Return 1 if a dependency has a known vulnerability."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json"]
    dependencies = []
    try:
        # One by one: the second pins another version of a package of the first.
        for name in ("constraints.txt", "Testing/requirements-nnunet.txt"):
            one = [*command, f"--requirement={_ROOT / name}"]
            result = subprocess.run(one, capture_output=True, text=True, timeout=_SECONDS, check=False)
            dependencies += json.loads(result.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("pip-audit could not reach its database: dependencies were not audited.")
        return 0
    weak = [one for one in dependencies if one.get("vulns")]
    unknown = sum("skip_reason" in one for one in dependencies)
    for one in weak:
        for weakness in one["vulns"]:
            fixed = ", ".join(weakness.get("fix_versions", [])) or "no version yet"
            print(f"{one['name']} {one['version']}: {weakness['id']}, fixed in {fixed}")
    print(f"{len(dependencies)} dependencies, {len(weak)} with known vulnerabilities, {unknown} not in the database.")
    return int(bool(weak))


if __name__ == "__main__":
    sys.exit(main())

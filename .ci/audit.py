"""Asks PyPI's advisories about what the service is made of, and says how much of it could be asked about.

Run with the Python of an environment that has `pip-audit`; its argument is the Python of the one that is audited.
Exits with 1 on a finding that the README's section on security does not answer by its id.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def main(audited: str) -> int:
    installed = subprocess.run(
        [audited, "-m", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True, check=True
    )
    # by version and not by address, and without what was installed from here
    wanted = [line for line in installed.stdout.splitlines() if re.fullmatch(r"[\w.-]+==\S+", line)]
    requirements = Path("requirements.audited")
    requirements.write_text("\n".join(wanted))
    command = [sys.executable, "-m", "pip_audit", "-f", "json", "--no-deps", "--disable-pip", "-r", str(requirements)]
    asked = subprocess.run(command, capture_output=True, text=True)
    requirements.unlink()
    try:
        found = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        if "ConnectionError" not in asked.stderr and "Connection refused" not in asked.stderr:
            print(f"pip-audit failed:\n{asked.stderr}")
            return 1
        print(f"pip-audit: the advisories can't be reached, so that {len(wanted)} packages could not be asked about.")
        return 0
    answered = Path("README.md").read_text(encoding="utf-8")
    open_findings = [
        f"{package['name']} {package['version']}: {finding['id']}"
        for package in found
        for finding in package.get("vulns", [])
        if finding["id"] not in answered
    ]
    unknown = sum("skip_reason" in package for package in found)
    print(f"pip-audit: {unknown} of {len(wanted)} packages could not be asked about, {len(open_findings)} open findings.")
    print("".join(f"  {each}\n" for each in open_findings), end="")
    return 1 if open_findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

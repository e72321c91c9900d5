"""`make audit`: known vulnerabilities of the packages installed here (pip-audit), and their licences (pip-licenses).

Ends with 1 if there is a known vulnerability, with 3 if the database could not be asked about every package: then
nothing is known of the others, which is not the same as nothing found.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict

STRONG = re.compile(r"\bA?GPL|General Public License(?!.*Lesser)", re.IGNORECASE)
OWN = "llm-modules"


def main() -> int:
    """Print both lists; the exit code."""
    print_licences()
    return audit()


def audit() -> int:
    """Ask pip-audit."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: pip-audit could not ask its database:\n{done.stderr.strip()[-1000:]}")
        return 3
    skipped = [one for one in found if "skip_reason" in one and one["name"] != OWN]
    vulnerable = [one for one in found if one.get("vulns")]
    for one in vulnerable:
        for known in one["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"VULNERABLE: {one['name']} {one['version']}: {known['id']}; mended in {mended}")
    asked = len(found) - len(skipped)
    print(f"{asked} of {len(found)} packages audited, {len(vulnerable)} with a known vulnerability")
    if skipped:
        reasons = sorted({one["skip_reason"].partition(":")[0] for one in skipped})
        print(f"NOT AUDITED: {len(skipped)} packages, of which the database knows nothing here ({'; '.join(reasons)})")
    return 1 if vulnerable else 3 if skipped else 0


def print_licences() -> None:
    """Packages by licence, those that bind whoever passes the software on marked."""
    command = [sys.executable, "-m", "piplicenses", "--format", "json", "--from", "mixed"]
    by_licence = defaultdict(list)
    for one in json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout):
        by_licence[" ".join(one["License"].split())[:60]].append(one["Name"])
    for licence, names in sorted(by_licence.items(), key=lambda pair: -len(pair[1])):
        print(f"{'! ' if STRONG.search(licence) else '  '}{licence}: {', '.join(sorted(names, key=str.lower))}")
    print("! binds whoever passes the software on; none of these is shipped with the library\n")


if __name__ == "__main__":
    raise SystemExit(main())

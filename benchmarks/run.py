"""`make bench`: every benchmark of speed, one after the other; tables on the screen and in `docs/performance.md`."""

import subprocess
import sys
import time

from benchmarks.results import parser

SCRIPTS = ("limits", "loss_speed", "store_speed", "training_speed", "paper_step", "decoding_speed", "growth")


def main() -> int:
    """Run each in a process of its own, so that no memory is left over; whether all ended well."""
    options = parser("run", __doc__.partition("\n")[0])
    options.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="some of them")
    given, started, failed = options.parse_args(), time.perf_counter(), []
    for number, script in enumerate(given.only, 1):
        minutes = (time.perf_counter() - started) / 60
        print(f"\n[{number}/{len(given.only)}] {script}, after {minutes:.0f} minutes", flush=True)
        passed_on = ["--quick"] * given.quick + (["--output", str(given.output)] if given.output else [])
        if subprocess.run([sys.executable, "-m", f"benchmarks.{script}", *passed_on], check=False).returncode:
            failed.append(script)
    print(f"\nall in {(time.perf_counter() - started) / 60:.1f} minutes" + (f"; failed: {failed}" if failed else ""))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

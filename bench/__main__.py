"""`make bench`: every benchmark, each in a process of its own. No pass or fail: figures to read."""

import subprocess
import sys

ALL = ("web", "live", "engine")

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)

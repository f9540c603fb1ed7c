"""`make bench`: every benchmark, each in a process of its own. No pass or fail: figures to read."""

import argparse
import subprocess
import sys

ALL = ("web", "live", "forward", "engine", "tokenize", "cache", "ground_truth", "monitor")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ALL, []], metavar="|".join(ALL), help="default: all")
    for name in parser.parse_args().names or ALL:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)

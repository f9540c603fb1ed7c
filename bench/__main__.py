"""`make bench`: the benchmarks of this machine, or those that are named, each in a process of its own. No pass or fail:
figures to read.

Those that compare with other libraries (memory, peers, quality) and the long one from text to SAE (end_to_end) run when
they are named, the former with a Python that has those libraries: /path/to/python -m bench peers
"""

import argparse
import subprocess
import sys

HERE = ("web", "live", "forward", "engine", "tokenize", "cache", "ground_truth", "monitor")
NAMED = ("memory", "peers", "quality", "end_to_end")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*HERE, *NAMED)
    default = f"default: {', '.join(HERE)}"
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="|".join(names), help=default)
    for name in parser.parse_args().names or HERE:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)

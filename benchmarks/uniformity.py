"""What the measures of uniformity take on a large set of embeddings: python benchmarks/uniformity.py.

One JSON line a measure, with the most memory that the process has held so far, the embeddings and PyTorch included.
"""

import argparse
import json
import platform
import resource
import sys
import time

import torch

from atr import uniformity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(options.points, options.dimensions, generator=torch.Generator().manual_seed(0))
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps(vars(options) | machine | {"python": platform.python_version()}))
    for measure in (uniformity.voxel_entropy, uniformity.uniformity, uniformity.point_to_point):
        started = time.perf_counter()
        value = measure(x)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
        seconds = time.perf_counter() - started
        print(json.dumps({"measure": measure.__name__, "value": value, "seconds": round(seconds, 1), "peak_gb": peak}))


if __name__ == "__main__":
    main()

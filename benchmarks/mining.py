"""How fast batches are mined, in how much memory, and how good they are: python benchmarks/mining.py [--device cuda].

One JSON line for each kind of batch. Embeddings are noise around clusters whose sizes fall as one over their rank, as
large a training set as AudioCaps unless told otherwise; the lowest mean cosine that any partition could have (`floor`)
is where every batch has the mean of all pairs.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from atr import mining


def made(clips: np.ndarray, dimensions: int, clusters: int) -> torch.Tensor:
    """(pairs, dimensions) normalised embeddings: a common direction, a direction of the clip's cluster and noise, all
    about as long.
    """
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(clusters, dimensions, generator=generator), dim=1)
    centres += F.normalize(torch.randn(1, dimensions, generator=generator), dim=1)
    shares = 1 / torch.arange(1.0, clusters + 1)
    cluster_of = torch.multinomial(shares, int(clips.max()) + 1, replacement=True, generator=generator)
    noise = torch.randn(len(clips), dimensions, generator=generator).div_(dimensions**0.5)
    return F.normalize(noise.add_(centres[cluster_of[torch.from_numpy(clips)]]), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=49_274)
    parser.add_argument("--captions", type=int, default=1, help="pairs of a clip")
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parallel", type=int, help="batches that grow side by side")
    parser.add_argument("--how", nargs="*", choices=mining.HOW, default=mining.HOW)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clips = np.arange(options.pairs) // options.captions
    embeddings = made(clips, options.dimensions, options.clusters).to(options.device)
    square = float(embeddings.mean(0).square().sum())
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    machine = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(vars(options) | machine | {"floor": (options.batch * square - 1) / (options.batch - 1)}))
    for how in options.how:
        started, busy = time.perf_counter(), time.process_time()
        batches = mining.mine(embeddings, clips, options.batch, how, 0, options.parallel)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        found = mining.report(embeddings, batches)
        quarters = np.array_split(found["mean_cosine"].to_numpy(), 4)
        line = {
            "how": how,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(busy, 1),
            "load": round(os.getloadavg()[0], 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2 ** (-30 if MAC else -20), 2),
            "batches": len(batches),
            "short": int((found["size"] < options.batch).sum()),
            "mean_cosine": round(float(np.average(found["mean_cosine"].fillna(0), weights=found["size"])), 4),
            "by_quarter": [round(float(np.nanmean(quarter)), 4) for quarter in quarters],
        }
        if options.device == "cuda":
            line["device_peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        print(json.dumps(line), flush=True)


MAC = sys.platform == "darwin"  # which counts in bytes, not in KiB

if __name__ == "__main__":
    main()

"""How fast all pairs are scored by text-aware pooling, in how much memory: python benchmarks/text_aware.py.

One JSON line. As large as Clotho's test split with ATST's frames (Tymofieiev 2025) unless told otherwise, of random
numbers; `error` is the greatest difference from the attention of section 3.6 word for word, over some pairs.
"""

import argparse
import json
import platform
import resource
import sys
import time

import torch
import torch.nn.functional as F

from atr.model import TextAwarePooling


def word_for_word(module: TextAwarePooling, frames: torch.Tensor, text: torch.Tensor) -> float:
    """Cosine of one caption (D,) with one clip (T, D)."""
    norm = module.layer_norm
    query, heard = module.w_q(norm(text)), norm(frames)
    weights = (module.w_k(heard) @ query / module.w_q.out_features**0.5).softmax(0)
    return float(F.cosine_similarity(norm(module.w_0(weights @ module.w_v(heard))), text, dim=0))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1045)
    parser.add_argument("--captions", type=int, default=5225)
    parser.add_argument("--frames", type=int, default=750)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--projection", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    module = TextAwarePooling(options.dim, options.projection).to(options.device).eval()
    frames = torch.randn(options.clips, options.frames, options.dim, device=options.device)
    mask = torch.ones(options.clips, options.frames, dtype=torch.bool, device=options.device)
    text = torch.randn(options.captions, options.dim, device=options.device)
    if options.device == "cuda":
        module.similarity(frames[:9], mask[:9], text)  # warm
        torch.cuda.synchronize()
    started = time.perf_counter()
    similarity = module.similarity(frames, mask, text).cpu()
    seconds = time.perf_counter() - started
    pairs = [(7 * k % options.captions, 3 * k % options.clips) for k in range(20)]
    errors = [abs(float(similarity[t, c]) - word_for_word(module, frames[c], text[t])) for t, c in pairs]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    result = {"device": device, "torch": torch.__version__, "seconds": round(seconds, 1), "error": max(errors)}
    result |= {"memory_gib": round(peak, 2)} if options.device == "cpu" else {}
    print(json.dumps(vars(options) | result | {"pairs_a_second": round(similarity.numel() / seconds)}))


if __name__ == "__main__":
    main()

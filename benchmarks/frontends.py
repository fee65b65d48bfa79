"""How many clips of 10 s a second each frontend takes: python benchmarks/frontends.py [--device cuda]."""

import argparse
import time

import torch

from atr import encoders


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--clips", type=int, default=32, help="clips of a batch")
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("encoders", nargs="*", default=["resnet38", "passt_s", "atst_frame", "compact"])
    options = arguments.parse_args()
    print(
        f"{options.device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}; batches of {options.clips}"
    )
    for name in options.encoders:
        encoder = encoders.build(name).eval().to(options.device)
        waveform = 0.1 * torch.randn(options.clips, 10 * encoder.sample_rate, device=options.device)
        lengths = torch.randint(9 * encoder.sample_rate, 10 * encoder.sample_rate, (options.clips,))
        rates = []
        with torch.inference_mode():
            for _ in range(options.repeats + 1):
                started = time.perf_counter()
                encoder.frontend(waveform, lengths.to(options.device))
                if options.device == "cuda":
                    torch.cuda.synchronize()
                rates.append(options.clips / (time.perf_counter() - started))
        rates = sorted(rates[1:])  # the first one warms up
        median = rates[len(rates) // 2]
        print(f"{name:12} {median:8.0f} clips/s in the median, {rates[0]:.0f} to {rates[-1]:.0f}")


if __name__ == "__main__":
    main()

"""The published networks in bf16 against float32, in forward and training steps: on a GPU at full size, else small."""

import json
import os
import subprocess
import sys

import pytest
from conftest import VISIBLE_GPUS

NETWORKS = ("resnet38", "cnn14", "passt_s", "atst_frame")
SCRIPT = """
import json, sys
import torch
from atr import encoders

device, clips, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if device == "cuda" and not torch.cuda.is_available():
    sys.exit(77)
said = {}
for name in sys.argv[4:]:
    torch.manual_seed(0)
    encoder = encoders.build(name, dropout=0.0).to(device)
    waveform = 0.1 * torch.randn(clips, int(seconds * encoder.sample_rate), device=device)
    target = torch.randn(clips, encoder.dim, device=device)

    def run(half):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            pooled = encoder.pool(*encoder(waveform))
        return pooled.float()

    def step(half):
        encoder.zero_grad()
        loss = -torch.nn.functional.cosine_similarity(run(half), target).mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0).item()

    encoder.eval()
    with torch.no_grad():
        forward = cosine(run(False), run(True))
    encoder.train()
    (full, gradient), (rough, other) = step(False), step(True)
    said[name] = {"forward": forward, "loss": abs(full - rough), "gradient": cosine(gradient, other)}
print(json.dumps(said))
"""


def compare(device, clips, seconds, *names):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if VISIBLE_GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    command = [sys.executable, "-c", SCRIPT, device, str(clips), str(seconds), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode == 77:
        pytest.skip("no GPU")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(said):
    for name, found in said.items():
        assert found["forward"] > 0.999, (name, found)
        assert found["loss"] < 0.02 and found["gradient"] > 0.9, (name, found)


def test_bf16_agrees_with_float32_on_a_gpu():
    check(compare("cuda", 8, 10.0, *NETWORKS))


def test_bf16_agrees_with_float32_on_a_cpu():
    check(compare("cpu", 2, 1.0, "cnn6"))

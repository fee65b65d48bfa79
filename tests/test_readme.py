"""What the README shows works as it stands."""

import re
import subprocess
import sys

import numpy as np
import soundfile

import atr
from atr import store


def blocks():
    return re.findall(r"```python\n(.*?)```", (store.PROJECT / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_configs_in_stages_and_from_another_corpus_are_sound():
    space = {"atr": atr}
    exec(blocks()[1], space)
    baseline, curriculum, elsewhere = (space[name] for name in ("baseline", "curriculum", "elsewhere"))
    assert [(part.fixed, part.mining) for part in curriculum.parts()] == [
        ("text", "easy"),
        ("audio", "random"),
        (None, "hard"),
    ]
    assert curriculum.needs() == {"ancillary": baseline} and elsewhere.needs() == {"start": baseline}


def test_the_ten_lines_for_own_sounds_run(tmp_path, homes):
    code = blocks()[0]
    small = {
        'load_corpus("soundscapes")': 'load_corpus("soundscapes", train=32, validation=4, test=4, duration=4.0)',
        "epochs=10": "epochs=1",
    }
    for text, replacement in small.items():
        assert code.count(text) == 1
        code = code.replace(text, replacement)

    folder = tmp_path / "my_sounds"
    folder.mkdir()
    rows = ["file_name,caption"]
    for number in range(40):
        wave = 0.3 * np.sin(np.arange(20_000 + 500 * number) * (0.02 + 0.01 * number))
        soundfile.write(folder / f"{number}.wav", wave, 22_050)
        rows.append(f"{number}.wav,tone number {number} is playing")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "own.py").write_text(code)

    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "t2a_r10" in done.stdout and re.search(r"epoch +loss +t2a_r10", done.stdout)

"""What the README and the page of own sounds show works as it stands."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

import atr
from atr.system import places


def blocks():
    page = (places.PROJECT / "docs" / "own_sounds.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.S)


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


def test_the_lines_that_embed_and_rank_run(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    tiny = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    config = atr.RunConfig(corpus=tiny, epochs=1, batch_size=16, embedding_dim=16)
    run = atr.fit(config, corpus, runs=atr.get_profile("demo").runs, device="cpu")
    monkeypatch.chdir(tmp_path)
    for name, clip in zip(("rain", "dog"), corpus.split("test").clips["clip"], strict=False):
        soundfile.write(f"{name}.wav", *corpus.read(clip))
    code = blocks()[3]
    assert code.count("3f0c") == 1
    exec(code.replace("3f0c", run.address[:4]), space := {})
    assert space["sounds"].shape == space["sentences"].shape == (2, 16)
    assert "t2a_median_rank" in capsys.readouterr().out


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


def test_numbers_in_peoples_words_are_those_of_the_committed_tables():
    folder = places.PROJECT / "results" / "reference" / "esc50" / "tables"
    names = ("scenes", "people_options", "people_halves", "people_scenes_halves")
    scenes, people, halves, alone = (pd.read_csv(folder / f"13_{name}.csv", index_col=0) for name in names)
    readme = (places.PROJECT / "README.md").read_text(encoding="utf-8")
    results = (places.PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    section = results.partition("**What do people's own words find?**")[2].partition("**Is it")[0]
    best = "scenes alone, adapter, τ 0.1"
    options = ["control", "scenes alone", best, "class names", "people's captions", "both"]
    rows = [line.replace("*", "").split(" | ")[1:] for line in section.splitlines() if line.startswith("| ")][2:]
    for option, (on_scenes, first, tenth, difference) in zip(options, rows, strict=True):
        row = people.loc[option]
        assert float(on_scenes) == pytest.approx(scenes.loc[option, "t2a_r1"], abs=0.051), option
        assert (float(first), float(tenth)) == pytest.approx((row["t2a_r1"], row["t2a_r10"]), abs=0.051), option
        told = [float(number) for number in difference.strip(" |").split(" ± ") if number]
        expected = [row["difference"], row["standard_error"]] if option != "control" else []
        assert told == pytest.approx(expected, abs=0.051), option
    assert (people["difference"].abs() < 2 * people["standard_error"]).drop("control").all()  # told from none
    text, pooled, chosen = " ".join(section.split()), halves.loc["all"], alone.loc["all"]
    assert set(alone["chosen"].dropna()) == {best} and scenes["t2a_r1"].idxmax() == best
    assert f"it is {chosen['difference']:.1f} ± {chosen['standard_error']:.1f} above the heads" in text
    assert f"have a third of it ({people.loc['scenes alone, τ 0.1', 't2a_r1']:.1f})" in text
    assert chosen["difference"] < 2 * chosen["standard_error"]
    adapted, both = people.loc[["both, adapter, τ 0.1", "both"], "t2a_r1"]
    assert f"({adapted:.1f} for {both:.1f})" in text
    joined = people[people.index.str.endswith("joined with the control")].sort_values("t2a_r1").iloc[-1]
    assert f"the best is {joined['t2a_r1']:.1f} and {joined['t2a_r10']:.1f}." in text
    difference = f"{-pooled['difference']:.1f} ± {pooled['standard_error']:.1f} below"
    assert f"comes to {pooled['t2a_r1']:.1f} on the other, {difference}" in text
    search = " ".join(readme.partition("## Search a folder")[2].split())
    for option, words in (("class names", "for {:.0f} % of the captions"), ("both", "for {:.0f} % where")):
        assert words.format(people.loc[option, "t2a_r10"]) in search
    assert f"({people.loc['control', 't2a_r10']:.0f} % if nothing is trained)" in search


def test_numbers_of_the_bank_are_those_of_the_committed_tables():
    folder = places.PROJECT / "results" / "reference" / "esc50" / "tables"
    scenes, people = (pd.read_csv(folder / f"13_{name}_bank.csv", index_col=0) for name in ("scenes", "people"))
    results = " ".join((places.PROJECT / "docs" / "results.md").read_text(encoding="utf-8").split())
    text = results.partition("**Do some sounds stand in the way")[2].partition("**Is it")[0]
    joined = scenes.index.str.endswith("joined with the control")
    assert (scenes["difference"] > 2 * scenes["standard_error"]).all() and (~joined).sum() == 9
    alone = scenes[~joined]
    gains = f"{alone['difference'].min():.1f} to {alone['difference'].max():.1f} points of R@1"
    assert f"{gains}, to {alone['t2a_r1'].max():.1f} for the best" in text
    without = pd.read_csv(folder / "13_people_options.csv", index_col=0)
    assert (people["difference"][~joined] > 0).sum() == 8 and "eight of nine gain in people's words by R@1" in text
    assert (people["t2a_r10"] < without["t2a_r10"])[~joined].sum() == 6 and "six of nine lose by R@10" in text
    assert (people["difference"] < 2 * people["standard_error"]).all()
    names = ["both", "both, joined with the control", "control"]
    both, best, control = people.loc[names, ["t2a_r1", "t2a_r10"]].to_numpy()
    assert "both comes to {:.1f} (R@10 {:.1f})".format(*both) in text
    assert "own similarity, to {:.1f} ({:.1f})".format(*best) in text
    before, ahead = without.loc["control", "t2a_r10"], people["t2a_r1"].max() - control[0]
    words = "itself comes to {:.1f} (R@10 {:.1f}, {:.1f} without the bank), {:.1f} below the best"
    assert words.format(*control, before, ahead) in text


def test_what_the_small_encoder_costs_is_what_the_committed_table_says():
    table = pd.read_csv(places.PROJECT / "results" / "reference" / "demo_mn04" / "tables" / "encoders.csv")
    page = (places.PROJECT / "docs" / "study.md").read_text(encoding="utf-8")
    lines = page.partition("**What the small encoder costs.**")[2].partition("\n## ")[0].splitlines()
    told = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    expected = [
        [
            f"`{row['encoder'].split()[0]}`",
            row["training"].replace("finetuned", "fine-tuned"),
            *(f"{row[name]:.1f} ± {row[f'{name}_std']:.1f}" for name in ("t2a_r1", "t2a_r10")),
            f"{row['t2a_map10']:.1f} ({row['t2a_map10_low']:.1f} to {row['t2a_map10_high']:.1f})",
        ]
        for row in table.to_dict("records")
    ]
    assert told == expected and set(table["seeds"]) == {5}


def test_times_of_the_page_on_speed_are_those_of_the_committed_tables():
    folder = places.PROJECT / "results" / "reference" / "demo" / "tables"
    goals = pd.read_csv(folder / "12_goals.csv").set_index("work")
    measured, search = (pd.read_csv(folder / f"12_{name}.csv") for name in ("measured", "search"))
    page = (places.PROJECT / "docs" / "scale.md").read_text(encoding="utf-8")
    told = [
        line.strip("| ").split(" | ")[1:] for line in page.splitlines() if re.match(r"\| [\w ,]+.* \| [\d.]+ m?s", line)
    ]
    frozen, frozen_one, ranks, scoring, step = (
        goals[goals.index.str.contains(words, regex=False)].iloc[0]
        for words in ("Clotho's", "AudioCaps's", "1,045", "text-aware", "in float32")
    )
    for row, goal in zip((told[0], told[1], told[2], told[4]), (frozen, frozen_one, ranks, scoring), strict=True):
        assert row[0] == goal["atr"] and goal["other"] in row[1]
        assert float(row[2]) == pytest.approx(goal["factor"], abs=0.5 if goal["factor"] > 10 else 0.05)
    assert told[3][0] == goals.loc["evaluation, 10,000 × 50,000", "atr"]
    rows = measured.set_index(["part", "how", "size"])
    large = rows.loc["text_aware", "atr"].filter(like="clips 1045", axis=0).iloc[0]
    assert told[5][0] == f"{large['seconds']:.0f} s, {large['memory_gib']:.1f} GiB"
    steps = rows.loc["step"].droplevel("size")
    for text, how, goal in ((told[6][0], "atr, plain", step["atr"]), (told[6][1], "released code", step["other"])):
        ends = f"({steps.loc[how, 'fastest']:.1f} to {steps.loc[how, 'slowest']:.1f})"
        assert text.endswith(f"{goal} {ends}")
    assert told[7][0] == f"{steps.loc['atr, bf16', 'seconds']:.2f} s"
    counted = pd.read_csv(folder / "12_step.csv").set_index("how").loc["atr, plain"]
    product = counted["flops"] / steps.loc["atr, plain", "seconds"] / counted["share_of_product"]  # of a large one
    share = 100 * 18e9 * 1045 / large["seconds"] / product
    assert f"over 1,045 clips they run at {share:.0f} % of the speed that one large" in " ".join(page.split())
    faiss = search[(search["rows"] == 1_000_000) & (search["probed"] == 64)].iloc[0]
    exact = rows.loc["search", "exact"].filter(like="rows 1000000", axis=0)["seconds"].iloc[0]
    one = f"it answers {round(faiss['queries_a_second'], -1):.0f} queries a second one at a time"
    assert f"at a million {one}, exact search {1 / exact:.1f}." in " ".join(page.split())
    assert (search.query("rows >= 100_000 and probed >= 16")["recall"] == 1).all()


def test_numbers_of_captions_and_topics_are_those_of_the_committed_tables():
    folder = places.PROJECT / "results" / "reference" / "captions" / "tables"
    tables = {
        name: pd.read_csv(folder / f"{name}.csv")
        for name in ("10_richness", "10_spread", "10_favourites", "10_rules", "11_topics_by_seed", "11_readings")
    }
    page = (places.PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition("**Are human captions richer")[2].partition("**What do people")[0]
    text = " ".join(section.replace("*", "").split())
    richer = tables["10_richness"].set_index(["unit", "measure"])[["human", "phi-4"]]
    for unit, words in (("caption", "a caption"), ("clip", "a clip's"), ("corpus", "a twentieth")):
        (row,) = [line for line in section.replace("*", "").splitlines() if line.startswith(f"| {words}")]
        told = [float(cell) for cell in row.strip("| ").split(" | ")[1:]]
        expected = [*richer.loc[unit, "MTLD"], *richer.loc[unit, "HD-D"]]
        assert told == [round(value, digits) for value, digits in zip(expected, (0, 0, 2, 2), strict=True)], unit
    spread = tables["10_spread"].set_index("unit")
    assert spread["verdict"].tolist() == ["holds", "contradicted", "undecided"]
    for unit in ("caption", "clip"):
        assert (
            "({human:.0f}{} against {phi:.0f})".format(
                " words" * (unit == "caption"), human=spread.loc[unit, "human"], phi=spread.loc[unit, "phi-4"]
            )
            in text
        )
    rhythmic, gentle, amidst = tables["10_favourites"]["difference"]
    assert f'"rhythmic" stands in {rhythmic:.0f} % more' in text
    assert f'"gentle" in {gentle:.0f} %, "amidst" in {amidst:.0f} %' in text
    broken = tables["10_rules"].set_index("rule").loc["any rule", "share"]
    assert f"{broken:.1f} % of its captions break one" in text
    topics, stable = tables["11_topics_by_seed"]["topics"], pd.read_csv(folder / "11_stability.csv")
    assert f"find {topics.min()} to {topics.max()} over three seeds" in text
    assert f"(adjusted mutual information {stable['ami'].mean():.2f})" in text
    assert f"it is {stable['ami_all'].mean():.2f}." in text and stable["placed"].mean() == pytest.approx(200 / 3, abs=2)
    read = tables["11_readings"].set_index(["read", "smallest"])
    low, high = read.loc["one caption a clip", ["number min", "number max"]].iloc[0].astype(int)
    few, many = (read.loc["all captions"].loc[size] for size in (50, 60))
    assert f"({low} to {high}), or with" in text
    assert f"({few['number max']:.0f} to {many['number min']:.0f})" in text


def test_each_test_that_the_promises_name_is_there():
    page = (places.PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (places.PROJECT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`((?:test_|Test)\w+)`", page))
    assert len(named) > 30 and named <= set(re.findall(r"(?:def|class) (\w+)", tests))

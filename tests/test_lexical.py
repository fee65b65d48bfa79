import string
import unicodedata

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from lexicalrichness import LexicalRichness

from atr import get_profile
from atr.analysis import lexical, lexical_figures
from atr.corpora.corpus import CorpusError
from atr.reports import figures

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    figures.plt.close("all")


def table(*rows):
    return pd.DataFrame(rows, columns=["clip", "source", "caption"])


def drawn(size, seed=0):
    """Words, some often and some rarely."""
    return np.random.default_rng(seed).zipf(1.5, size).clip(max=40).astype(str).tolist()


@pytest.fixture
def captions():
    """Three clips of two captions by each source: people say "the" twice, the model repeats no word in a caption."""
    rows = []
    for clip, (thing, other) in {"a": ("dog", "cat"), "b": ("rain", "wind"), "c": ("bell", "horn")}.items():
        rows += [(clip, "human", f"the {thing} near the {other} is heard very well now") for _ in range(2)]
        rows += [
            (clip, "phi-4", f"a {thing} amidst {other} sounds gently, quite {how}") for how in ("near", "far away")
        ]
    return table(*rows)


class TestWords:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("A person's Walkie-Talkie, 3 birds!", "a person s walkietalkie birds"),
            ("‘Rain’ — “wind”… a dog—barks", "rain wind a dog barks"),
            ("ÉTÉ naïve 雨 straße", "été naïve 雨 straße"),
            ("", ""),
            ("... 12 !", ""),
            ("rain/wind «Regen» rain，wind „horn‚", "rain wind regen rain wind horn"),
            ("don't don’t donʼt don´t don`t", "don t " * 5),
            ("walkie-talkie walkie‐talkie walkie‑talkie walkie\u00adtalkie", "walkietalkie " * 4),
            ("١٢ birds ９", "birds"),
            ("STRAẞE हिन्दी भाषा", "straße हिन्दी भाषा"),
        ],
    )
    def test_what_counts_as_a_word(self, text, expected):
        assert lexical.words(text) == expected.split()
        assert lexical.words(unicodedata.normalize("NFD", text)) == expected.split()


class TestMeasures:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("a b c d e", 5),  # nothing repeated: the number of words
            ("a b c d e f g h i a", 10 / (0.1 / 0.28)),  # one repetition, and the text counts 0.36 of a stretch
            ("a a a a", 2),  # two stretches of two
            ("a a b c", (4 / 1 + 4 / (0.25 / 0.28)) / 2),  # forwards one stretch, backwards none quite
            ("a", 1),
        ],
    )
    def test_mtld_by_hand(self, text, expected):
        assert lexical.mtld(text.split()) == pytest.approx(expected)

    def test_mattr_by_hand(self):
        assert lexical.mattr("a a b a".split(), 2) == pytest.approx((0.5 + 1 + 1) / 3)
        assert lexical.mattr("a a b a".split(), 4) == 0.5

    def test_hdd_by_hand(self):
        # Of the three pairs of "a a b" one has one distinct word and two have two.
        assert lexical.hdd("a a b".split(), 2) == pytest.approx((1 + 2 + 2) / 3 / 2)
        assert lexical.hdd(list("abcdefgh"), 8) == 1

    @pytest.mark.parametrize("size", [42, 60, 500])
    def test_hdd_is_the_packages(self, size):
        tokens = drawn(size)
        assert lexical.hdd(tokens, 42) == pytest.approx(LexicalRichness(tokens, None, None).hdd(42))

    def test_hdd_does_not_depend_on_the_order_and_is_fast_on_a_long_text(self):
        tokens = drawn(200_000)
        assert lexical.hdd(tokens, 42) == lexical.hdd(sorted(tokens), 42)

    def test_texts_too_short_have_no_value(self):
        assert np.isnan(lexical.mtld([]))
        assert np.isnan(lexical.mattr(["a"], 2)) and np.isnan(lexical.hdd(["a"], 2))

    def test_a_stretch_ends_where_the_share_of_distinct_words_falls_to_the_threshold(self):
        assert lexical.falls("a b c a b".split()) and not lexical.falls("a b c d a".split()) and not lexical.falls([])


class TestTexts:
    @pytest.mark.parametrize("caption", ["一只狗在院子里叫", "犬が吠えている。", "สุนัขเห่าในสวน"])
    def test_a_caption_without_blanks_between_its_words_is_refused(self, caption):
        with pytest.raises(ValueError, match=f"caption '{caption}': no blanks between its words; put them there"):
            lexical.richness(table(("x", "human", "a dog"), ("x", "human", caption)))
        apart = lexical.texts(
            table(("x", "human", "一只 狗 在 院子里 叫"), ("x", "human", "ヘリコプター が 飛ぶ")), "clip"
        )
        assert apart["tokens"][0] == ["一只", "狗", "在", "院子里", "叫", "ヘリコプター", "が", "飛ぶ"]

    def test_a_caption_stands_alone_a_clips_are_joined_in_order(self):
        made = table(("x", "human", "One dog."), ("x", "phi-4", "a hound"), ("x", "human", "two!"), ("y", "human", ""))
        assert lexical.texts(made, "caption")["tokens"].tolist() == [["one", "dog"], ["a", "hound"], ["two"], []]
        joined = lexical.texts(made, "clip").set_index(["group", "source"])["tokens"].to_dict()
        assert joined == {("x", "human"): ["one", "dog", "two"], ("y", "human"): [], ("x", "phi-4"): ["a", "hound"]}

    def test_a_corpus_is_shuffled_and_dealt_by_clip(self):
        made = table(
            *[(f"clip {n}", source, f"{source} {word}") for n, word in enumerate("abcdefgh") for source in "xy"]
        )
        found = lexical.texts(made, "corpus", parts=3, seed=1)
        pd.testing.assert_frame_equal(found, lexical.texts(made, "corpus", parts=3, seed=1))
        by = found.set_index(["source", "group"])["tokens"].map(lambda tokens: set(tokens) - {"x", "y"})
        assert found["source"].tolist() == ["x"] * 3 + ["y"] * 3
        assert sorted(map(len, by["x"])) == [2, 3, 3] and by["x"].to_dict() == by["y"].to_dict()
        whole = [tuple(lexical.texts(made, "corpus", seed=seed)["tokens"][0]) for seed in (0, 1)]
        assert whole[0] != whole[1] and sorted(whole[0]) == sorted(whole[1])

    def test_texts_are_cut_to_equal_length(self):
        made = table(("x", "human", "a b c d"), ("x", "phi-4", "e f g"), ("y", "human", "h"), ("y", "phi-4", "i j"))
        cut = lexical.equal_lengths(lexical.texts(made, "clip"))
        assert cut.groupby("group")["tokens"].agg(list).to_dict() == {
            "x": [["a", "b", "c"], ["e", "f", "g"]],
            "y": [["h"], ["i"]],
        }
        assert lexical.equal_lengths(lexical.texts(made, "caption"), 2)["tokens"].tolist() == [
            ["a", "b"],
            ["e", "f"],
            ["i", "j"],
        ]

    def test_what_cannot_be_measured_is_refused(self, captions):
        with pytest.raises(ValueError, match="unit is 'word'; known: 'caption', 'clip', 'corpus'"):
            lexical.texts(captions, "word")
        with pytest.raises(ValueError, match="parts is 4; the 3 clips"):
            lexical.texts(captions, "corpus", parts=4)

    def test_richness_of_odd_captions(self):
        made = table(("x", "human", ""), ("x", "human", "rain"), ("x", "human", string.punctuation))
        found = lexical.richness(made)
        assert found["tokens"].tolist() == found["types"].tolist() == [0, 1, 0] and not found["falls"].any()
        assert found["mtld"].fillna(-1).tolist() == [-1, 1, -1] and found[["mattr", "hdd"]].isna().all(axis=None)


class TestComparison:
    def test_by_hand(self):
        values = {"human": [3.0, 5.0, 7.0], "phi-4": [1.0, 2.0, 9.0]}
        measured = pd.DataFrame(
            [
                (group, source, value)
                for source, many in values.items()
                for group, value in zip("abc", many, strict=True)
            ],
            columns=["group", "source", "mtld"],
        )
        found = lexical.compare(measured)
        assert (found["groups"], found["human"], found["phi-4"], found["difference"]) == (3, 5, 2, 2)
        assert found["d"] == pytest.approx(1 / np.std([2, 3, -2], ddof=1))
        assert found["rank_biserial"] == pytest.approx((1.5 + 3 - 1.5) / 6)  # ranks of 2, 3 and 2
        assert (found["low"], found["high"]) == (-2, 3) and found["p"] == 0.75
        assert lexical.compare(measured, sources=("phi-4", "human"))["difference"] == -2

    def test_which_spreads_wider_goes_by_distances_from_the_median(self):
        values = {"human": [1.0, 9.0, 5.0, 2.0, 8.0], "phi-4": [30.0, 31.0, 30.0, 29.0, 30.0]}
        rows = [(g, source, x) for source, many in values.items() for g, x in enumerate(many)]
        measured = pd.DataFrame(rows, columns=["group", "source", "mtld"])
        apart = lexical.deviations(measured)
        assert apart["mtld"].tolist() == [4, 4, 0, 3, 3, 0, 1, 0, 1, 0]
        many = pd.concat([apart.assign(group=apart["group"] + 5 * copy) for copy in range(4)])
        (found,) = lexical.claims({"clip": many}, columns=["mtld"]).to_dict("records")
        assert found["verdict"] == "holds" and found["difference"] == 3
        assert lexical.claims({"clip": many}, ("phi-4", "human"), ["mtld"])["verdict"].tolist() == ["contradicted"]

    def test_sources_that_are_alike_differ_in_nothing(self):
        measured = pd.DataFrame({"group": [0, 1] * 2, "source": ["human"] * 2 + ["phi-4"] * 2, "mtld": [4.0, 5.0] * 2})
        found = lexical.compare(measured)
        assert found["difference"] == found["rank_biserial"] == 0 and found["p"] == 1 and np.isnan(found["d"])

    def test_clips_that_have_no_partner_do_not_count_and_without_any_the_mend_is_named(self, captions):
        measured = lexical.richness(captions)
        lone = measured[(measured["source"] == "human") | (measured["group"] != "a")]
        assert lexical.compare(lone)["groups"] == 2
        apart = measured.assign(group=measured["source"] + measured["group"])
        with pytest.raises(ValueError, match="0 groups with mtld of both 'human' and 'phi-4'.*for the same clips"):
            lexical.compare(apart)
        with pytest.raises(ValueError, match="no source 'gpt'; known: human, phi-4"):
            lexical.compare(measured, sources=("human", "gpt"))

    def test_mtld_of_captions_calls_richer_what_repeats_and_the_other_measures_do_not(self, captions):
        """Ten words with one of them twice against eight or so that differ: why units and measures disagree."""
        copies = [captions.assign(clip=captions["clip"] + str(number)) for number in range(5)]
        many = pd.concat(copies, ignore_index=True)
        found = lexical.claims({"caption": lexical.richness(many)}).set_index("measure")
        assert found["verdict"].to_dict() == {"MTLD": "holds", "MATTR": "contradicted", "HD-D": "contradicted"}
        assert (found["p (Holm)"] < 0.05).all() and "p" not in found and (found["unit"] == "caption").all()

        why = lexical.reasons(lexical.richness(many))
        assert why["without repetition (%)"].to_dict() == {"human": 0, "phi-4": 100}
        assert why.loc["human", "mtld"] == why.loc["human", "mtld with"] == pytest.approx(28)
        assert why.loc["phi-4", "mtld"] == why.loc["phi-4", "tokens"] == why.loc["phi-4", "mtld without"] == 8.5
        assert why.loc["phi-4", "length and mtld"] == pytest.approx(1) and np.isnan(why.loc["human", "length and mtld"])


class TestVocabulary:
    def test_frequent_words_are_counted_without_stop_words_ties_in_alphabetical_order(self):
        made = table(("x", "human", "The rain, the rain and wind don't stop"), ("y", "phi-4", "a dog's bark barks"))
        found = lexical.frequent(made, 2)
        assert found[["source", "word", "count"]].values.tolist() == [
            ["human", "rain", 2],
            ["human", "stop", 1],
            ["phi-4", "bark", 1],
            ["phi-4", "barks", 1],
        ]
        assert found["per_1000"].tolist() == [500, 250, pytest.approx(1000 / 3), pytest.approx(1000 / 3)]

    def test_distinctive_words_by_hand(self):
        made = table(("x", "human", "dog dog dog rain"), ("x", "phi-4", "rain rain hum hum"))
        found = lexical.distinctive(made, prior=8).set_index("word")
        # Of eight words three are "dog": with as many as prior, human has 3 + 3 of 4 + 8, phi-4 0 + 3.
        assert found.loc["dog", "log_odds"] == pytest.approx(np.log(6 / 6) - np.log(3 / 9))
        assert found.loc["dog", "z"] == pytest.approx(np.log(3) / np.sqrt(1 / 6 + 1 / 3))
        assert found.index.tolist() == ["dog", "rain", "hum"] and found.loc["hum", "human"] == 0
        with pytest.raises(ValueError, match="no source 'gpt'"):
            lexical.distinctive(made, ("human", "gpt"))

    def test_clips_that_have_a_word_in_a_caption_of_a_source(self):
        made = table(
            *[("x", "human", "Rain falls"), ("x", "human", "a gentle rain"), ("x", "phi-4", "rainy, gently")],
            *[("y", "human", "rain"), ("y", "phi-4", "Gentle! rain"), ("z", "human", "wind")],
        )
        found = lexical.having(made, "gentle")
        assert found["human"].to_dict() == {"x": 100, "y": 0, "z": 0}
        assert found["phi-4"].to_dict() == {"x": 0, "y": 100, "z": 0}

    def test_a_rare_word_tells_less_than_a_frequent_one(self):
        often = [("x", "human", "dog rain")] * 50 + [("x", "phi-4", "hum rain")] * 50
        found = lexical.distinctive(table(*often, ("x", "human", "zebra"))).set_index("word")
        assert found.index[0] == "dog" and 0 < found.loc["zebra", "z"] < found.loc["dog", "z"]


def test_closeness_is_the_mean_cosine_over_pairs(captions):
    embeddings = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    found = lexical.closeness(captions, embeddings)
    cosine = (embeddings @ embeddings.t()).numpy()
    clip, source = captions["clip"].to_numpy(), captions["source"].to_numpy()

    def mean(first, second):
        return cosine[np.ix_(first, second)].mean()

    own, others = np.flatnonzero(clip == "b"), np.flatnonzero((clip != "b") & (source == "human"))
    human, phi = own[source[own] == "human"], own[source[own] == "phi-4"]
    assert found.loc["b", "within human"] == pytest.approx(cosine[human[0], human[1]])
    assert found.loc["b", "between human and phi-4"] == pytest.approx(mean(human, phi), abs=1e-6)
    assert found.loc["b", "human, other clips"] == pytest.approx(mean(human, others), abs=1e-6)
    single = lexical.closeness(captions.iloc[[0, 2]], embeddings[[0, 2]])
    assert single.loc["a", ["within human", "human, other clips"]].isna().all()
    with pytest.raises(ValueError, match="11 embeddings of 12 captions"):
        lexical.closeness(captions, embeddings[:11])


class TestSources:
    def test_a_table_of_two_sources(self, tmp_path, monkeypatch):
        path = tmp_path / "captions.csv"
        header = ["file_name", *(f"caption_{number}" for number in range(1, 11))]
        pd.DataFrame([["a.wav", *"12345", *"67890"], ["NA", *"abcde", *"fghij"]], columns=header).to_csv(
            path, index=False
        )
        monkeypatch.setenv("ATR_CAPTIONS", str(path))
        found = lexical.sources(get_profile("captions"))
        joined = found.groupby(["clip", "source"], sort=False)["caption"].agg("".join).to_dict()
        assert list(joined.items()) == [
            (("a.wav", "human"), "12345"),
            (("NA", "human"), "abcde"),
            (("a.wav", "phi-4"), "67890"),
            (("NA", "phi-4"), "fghij"),
        ]
        path.write_text("file_name,caption_1\na.wav,b\n")
        with pytest.raises(CorpusError, match="no column 'caption_2'"):
            lexical.sources(get_profile("captions"))

    def test_elsewhere_the_training_captions_of_the_profile(self):
        clips = get_profile("smoke").corpora["soundscapes"]["train"]
        found = lexical.sources(get_profile("smoke"))
        assert len(found) == 5 * clips and found["clip"].nunique() == clips and set(found["source"]) == {"grammar"}


class TestFigures:
    def test_clouds_of_words_are_the_same_each_time(self, captions, tmp_path):
        counted = lexical.frequent(captions)
        for name in "ab":
            figures.save(lexical_figures.clouds(counted), tmp_path, name)
        first, second = ((tmp_path / "figures" / f"{name}.pdf").read_bytes() for name in "ab")
        assert first.replace(b"(a)", b"(b)") == second
        assert [axis.get_title() for axis in lexical_figures.clouds(counted).axes] == ["human", "phi-4"]

    def test_densities_stand_above_violins_unit_by_unit(self, captions):
        measured = {unit: lexical.richness(captions, unit) for unit in ("caption", "clip")}
        upper, other, lower, _ = lexical_figures.densities(measured).axes
        assert (upper.get_title(), other.get_title(), lower.get_xlabel()) == ("caption", "clip", "MTLD (words)")
        assert [label.get_text() for label in lower.get_yticklabels()] == ["human", "phi-4"]

    def test_mtld_by_length_with_and_without_a_repetition(self, captions):
        human, other, right = lexical_figures.by_length(lexical.richness(captions), least=3).axes
        assert (human.get_title(), other.get_title()) == ("human", "phi-4")
        lines = [{line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in (human, other)]
        assert lines == [{"a word repeated": [[10, pytest.approx(28)]]}, {"none repeated": [[8, 8], [9, 9]]}]
        assert [line.get_ydata().tolist() for line in right.lines] == [[100], [0, 0]]
        assert human.get_ylim() == other.get_ylim()

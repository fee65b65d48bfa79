import itertools
import shutil
import unicodedata

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from atr.analysis import lexical, maps, topics
from atr.encoders import text
from atr.reports import figures
from atr.system import places

matplotlib.use("agg")
THEMES = {
    "rain": "{} rain falls on a {} roof",
    "dog": "a {} dog barks in a {} yard",
    "train": "a {} train passes a {} station",
}
WORDS = ("heavy", "loud", "small", "old", "distant")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    figures.plt.close("all")


@pytest.fixture(scope="module")
def captions():
    """150 captions of three obvious themes, ten clips a theme, five captions a clip."""
    return [
        frame.format(WORDS[number % 5], WORDS[number // 5 % 5]) + (" again" if number >= 25 else "")
        for frame in THEMES.values()
        for number in range(50)
    ]


@pytest.fixture(scope="module")
def embeddings(captions):
    return text.sentences(captions)


@pytest.fixture(scope="module")
def found(captions, embeddings):
    return topics.fit(captions, embeddings, seed=0, smallest=30)


def made(labels, seed=0):
    """Topics with these labels, named by their number."""
    labels = np.asarray(labels)
    rows = [(topic, int((labels == topic).sum()), 0.0, f"topic {topic}", "") for topic in range(labels.max() + 1)]
    return topics.Topics(seed, labels, pd.DataFrame(rows, columns=["topic", "size", "share", "name", "keywords"]))


class TestFit:
    def test_three_themes_are_three_topics_with_their_names(self, found):
        assert found.number == 3 and found.outliers < 20
        for start in (0, 50, 100):
            labels = found.labels[start : start + 50]
            assert len(set(labels[labels >= 0])) == 1
        assert all(any(theme in name for name in found.table["name"]) for theme in THEMES)
        assert found.table["size"].tolist() == np.bincount(found.labels[found.labels >= 0]).tolist()
        assert found.table["share"].sum() == pytest.approx(100 - found.outliers)
        assert not {"the", "and", "in"} & set(" ".join(found.table["keywords"]).split())

    def test_it_comes_from_the_store_the_second_time(self, captions, embeddings, found, monkeypatch):
        monkeypatch.setattr(topics, "_topics", None)
        monkeypatch.setattr(topics, "_clusters", None)
        again = topics.fit(captions, embeddings, seed=0, smallest=30)
        pd.testing.assert_frame_equal(again.table, found.table)
        assert (again.labels == found.labels).all()
        with pytest.raises(TypeError):
            topics.fit(captions, embeddings, seed=0, smallest=31)

    def test_the_same_seed_gives_the_same_topics_when_they_are_computed_again(self, captions, embeddings, found):
        for kind in ("topics", "reduced"):
            shutil.rmtree(places.home() / "cache" / kind)
        again = topics.fit(captions, embeddings, seed=0, smallest=30)
        assert (again.labels == found.labels).all() and again.table.equals(found.table)

    def test_captions_without_a_dense_region_are_all_outliers(self):
        few = [f"{word} sound of kind {word}" for word in "one two three four five six seven eight nine ten".split()]
        few = topics.fit(few, torch.nn.functional.normalize(torch.eye(10) + 0.1, dim=1))
        assert few.number == 0 and few.outliers == 100 and few.table.columns.tolist()[-1] == "keywords"

    def test_what_cannot_be_grouped_is_refused(self, captions, embeddings):
        with pytest.raises(ValueError, match="149 embeddings of 150 captions"):
            topics.fit(captions, embeddings[1:])
        with pytest.raises(ValueError, match="9 captions; a topic has 10 or more"):
            topics.fit(captions[:9], embeddings[:9])
        with pytest.raises(ValueError, match="6 captions; give 7 or more"):
            topics.reduce(embeddings[:6])

    @pytest.mark.parametrize(
        "caption, expected",
        [
            ("Das Mädchen hört Bäche", "das mädchen hört bäche"),
            ("rain/wind, dogs,cats", "rain wind dogs cats"),
            ("a person's walkie-talkie isn’t", "persons walkietalkie isnt"),
            ("911 calls, 1 bird", "911 calls bird"),
            ("一只狗在叫", "一只 只狗 狗在 在叫"),
            ("CD播放 狗", "cd 播放 狗"),
            ("हिन्दी ΟΔΟΣ", "हिन्दी οδος"),
            ("it is the", ""),
        ],
    )
    def test_what_counts_as_a_keyword(self, caption, expected):
        for form in ("NFC", "NFD"):
            assert topics.words(unicodedata.normalize(form, caption)) == expected.split()

    @pytest.mark.parametrize(
        "frames, names",
        [
            (("Mädchen singen {}", "Bäche rauschen {}"), ("Mädchen singen", "Bäche rauschen")),
            (("狗叫{}", "下雨{}"), ("狗叫", "下雨")),
            (("911{}", "1700{}"), ("911", "1700")),
        ],
    )
    def test_topics_are_named_in_any_script_and_by_numbers(self, frames, names, monkeypatch):
        captions = [frame.format(" " * (number % 2)) for frame in frames for number in range(12)]
        rng = np.random.default_rng(0)
        centres = np.repeat([[0.0] * 5, [9.0] * 5], 12, axis=0)
        monkeypatch.setattr(topics, "reduce", lambda *_: (centres + rng.normal(0, 0.1, (24, 5))).astype(np.float32))
        embeddings = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(2):  # computed, and from the store
            found = topics.fit(captions, embeddings, smallest=10).table
            given = {frozenset(name.split(", ")) for name in found["name"]}
            assert given == {frozenset(name.lower().split()) for name in names}

    def test_captions_of_stop_words_alone_are_refused_by_their_words(self):
        with pytest.raises(ValueError, match="12 captions without a word to name a topic by, such as 'it is'"):
            topics.fit(["it is"] * 12, torch.eye(12))

    def test_counts_are_the_numbers_of_topics_by_seed_and_smallest_size(self, embeddings, found):
        counted = topics.counts(embeddings, [0], [30, 100])
        assert counted.loc[0].to_dict() == {
            "seed": 0,
            "smallest": 30,
            "captions": 150,
            "number": 3,
            "outliers": pytest.approx(found.outliers),
        }
        assert counted.loc[1, "number"] < 3


class TestAgreement:
    def test_equal_labels_agree_whatever_their_numbers(self):
        first = np.array([0, 0, 1, 1, 2, 2, -1])
        assert topics.agreement(first, first) == {
            "placed": pytest.approx(600 / 7),
            **dict.fromkeys(("ami", "ari", "ami_all", "ari_all"), pytest.approx(1)),
        }
        renamed = np.array([2, 2, 0, 0, 1, 1, -1])
        assert topics.agreement(first, renamed) == topics.agreement(first, first)

    def test_outliers_of_one_count_only_among_all(self):
        found = topics.agreement(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, -1]))
        assert found["placed"] == 80 and found["ami"] == pytest.approx(1) and found["ami_all"] < 1

    def test_labels_by_chance_agree_in_nothing(self):
        rng = np.random.default_rng(0)
        found = topics.agreement(rng.integers(0, 5, 2000), rng.integers(0, 5, 2000))
        assert abs(found["ami"]) < 0.01 and abs(found["ari"]) < 0.01

    def test_nothing_in_common_has_no_agreement_and_other_captions_are_refused(self):
        assert np.isnan(topics.agreement(np.array([0, -1]), np.array([-1, 0]))["ami"])
        with pytest.raises(ValueError, match="labels of 2 and 3 captions"):
            topics.agreement(np.zeros(2), np.zeros(3))

    def test_stability_has_a_row_each_two_seeds(self):
        fits = [made([0, 0, 1, 1], 3), made([1, 1, 0, 0], 4), made([0, 1, 0, 1], 5)]
        table = topics.stability(fits)
        assert table[["first", "second"]].values.tolist() == [[3, 4], [3, 5], [4, 5]]
        assert table["ami"][0] == pytest.approx(1) and table["ari"][1] < 0
        assert topics.stability(fits[:1]).empty and "ami" in topics.stability(fits[:1])


class TestTogether:
    def test_by_hand(self):
        clips = ["a", "a", "a", "b", "b", "c", "d", "d"]
        found = topics.together(clips, np.array([0, 0, 1, 2, 2, 0, 1, -1]), draws=200)
        # Pairs: three of a, one alike; one of b, alike. c and d have a single caption in a topic.
        assert found["number"].to_dict() == {"pairs": 4, "clips": 2}
        assert found["percent"].to_dict() == {"pairs": 50, "clips": 50}

    def test_themes_of_clips_are_no_chance_and_chance_is_the_sum_of_squares(self):
        clips, labels = np.repeat(np.arange(40), 5), np.repeat(np.arange(40) % 4, 5)
        found = topics.together(clips, labels)
        assert found["percent"].to_dict() == {"pairs": 100, "clips": 100} and (found["p"] == 1 / 1001).all()
        assert found.loc["pairs", "chance"] == pytest.approx(25, abs=1.5)

    def test_topics_dealt_at_random_are_chance(self):
        labels = np.random.default_rng(1).integers(0, 4, 200)
        assert topics.together(np.repeat(np.arange(40), 5), labels).loc["pairs", "p"] > 0.05

    def test_without_topics_there_is_nothing_to_share(self):
        found = topics.together(["a", "a"], np.array([-1, -1]))
        assert found["number"].tolist() == [0, 0] and found[["percent", "chance", "p"]].isna().all(axis=None)


class TestPictures:
    @pytest.fixture
    def four(self):
        """Points of four captions in the plane, two of them in a topic each, and their texts."""
        texts = ["a dog barks", 'he says "5 > 4 & 3"', "rain", "nothing"]
        return np.array([[0, 0], [1, 1], [2, 0], [5, 5]], dtype=np.float32), made([0, 1, 0, -1]), texts

    def test_the_plane_is_the_same_each_time(self, embeddings):
        first = topics.plane(embeddings, 1)
        shutil.rmtree(places.home() / "cache" / "planes")
        assert first.shape == (150, 2) and np.array_equal(first, topics.plane(embeddings, 1))

    def test_topics_are_named_where_they_lie(self, four):
        points, found, _ = four
        found.table["name"] = ["dog, barks, loud", "rain"]
        (axis,) = topics.picture(points, found).axes
        assert {item.get_text(): item.xy for item in axis.texts} == {"dog, barks": (1, 0), "rain": (1, 1)}
        assert [len(layer.get_offsets()) for layer in axis.collections] == [1, 2, 1]
        assert len(topics.picture(points, found, 1).axes[0].texts) == 1
        assert not topics.picture(points, made([-1] * 4)).axes[0].texts

    def test_names_that_would_meet_move_apart_and_no_others(self):
        places = np.array([[0, 0], [2, 1], [3, -1], [100, 0]], dtype=float)
        moves = topics.apart(places, ["rain", "wind", "fire", "dog"], height=8, letter=4)
        assert moves[0] == moves[3] == 0
        heights = places[:3, 1] + moves[:3]
        assert min(abs(a - b) for a, b in itertools.combinations(heights, 2)) >= 8 and abs(moves).max() <= 12

    def test_neighbours_differ_in_colour(self):
        line = np.stack([np.arange(18.0), np.zeros(18)], axis=1)
        colors = topics.spread_colors(line)
        assert len(set(colors[:6])) == 6
        assert all(a != b for a, b in itertools.pairwise(colors))

    def test_the_explorer_says_caption_and_topic_where_the_pointer_rests(self, four):
        others, first, second = topics.explorer(*four).data
        assert [trace.name for trace in (others, first, second)] == ["others", "1 topic 0", "2 topic 1"]
        assert list(others.hovertext) == ["nothing<br><i>no topic</i>"] and list(first.x) == [0, 2]
        assert list(second.hovertext) == ['he says "5 &gt; 4 &amp; 3"<br><i>topic 1</i>']

    def test_foreign_signs_are_shown_as_they_are(self, tmp_path):
        found = made([0, 1, 0, -1])
        found.table["name"] = [r"$\frac{$", "狗叫 <b>"]
        points, texts = np.arange(8, dtype=np.float32).reshape(4, 2), ["costs $5 or $6", "a", "b", "c"]
        with pytest.warns(UserWarning, match=r"11_topics.\*: empty boxes for what the font lacks: U\+72D7, U\+53EB"):
            figure = figures.save(topics.picture(points, found), tmp_path, "11_topics")
        assert [text.get_text() for text in figure.axes[0].texts] == [r"$\frac{$", "狗叫 <b>"]
        traces = topics.explorer(points, found, texts).data
        assert [trace.name for trace in traces[1:]] == [r"1 &#36;\frac{&#36;", "2 狗叫 &lt;b&gt;"]
        assert traces[1].hovertext[0] == r"costs &#36;5 or &#36;6<br><i>&#36;\frac{&#36;</i>"

    def test_show_saves_the_picture_and_gives_the_explorer_to_a_looker_on(self, four, tmp_path, monkeypatch):
        monkeypatch.setattr(maps, "live", lambda: False)
        assert isinstance(topics.show(*four, tmp_path, "11_topics"), matplotlib.figure.Figure)
        assert (tmp_path / "figures" / "11_topics.png").is_file() and figures.plt.get_fignums() == []
        monkeypatch.setattr(maps, "live", lambda: True)
        assert len(topics.show(*four, tmp_path, "11_topics").data) == 3


def test_stop_words_are_taken_apart_as_captions_are():
    assert {"the", "don", "t"} <= lexical.stop_words() and not {"don't", "fire", "rain"} & lexical.stop_words()

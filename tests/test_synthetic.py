import json
import re
import time
import unicodedata

import dataset_layouts
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atr.corpora import clotho, load_corpus
from atr.corpora.captioning.answers import CAPTIONS, MOST_WORDS, findings, names, parse, plain, problems
from atr.corpora.captioning.paraphrase import PREFIXES, SUFFIXES, paraphrase
from atr.corpora.captioning.record import Answer, path, read, with_synthetic
from atr.corpora.scenes import soundscapes
from atr.system import places

OWN = ["A dog barks while rain falls.", "a dog barking in the rain", "Rain, and a dog.", "Rain and barks", "Wet dog"]
NEW = [
    "A hound woofs in a shower.",
    "Barks in wet weather.",
    "It pours as a hound woofs.",
    "Woofs amid rain",
    "A soaked hound",
]
ODD = [
    "Cafe\u0301 noise \U0001f415\u200d\U0001f9ba",
    "\u200fגשם יורד\u200f",
    "rain\u2028and wind",
    "naïve “bells” – ringing",
    "ﬁre",
]
SIZES = {"train": 6, "validation": 3, "test": 3, "duration": 4.0}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    return tmp_path


def corpus(**options):
    return load_corpus("soundscapes", **SIZES, **options)


def answer(clip, captions=NEW, given=OWN, **changes):
    text = captions if isinstance(captions, str) else json.dumps(captions)
    return Answer(
        **{"clip": clip, "given": tuple(given), "model": "m", "key": "k", "attempt": 1, "text": text} | changes
    )


def recorded(name, answers):
    record = path(name)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(b"".join(one.line() for one in answers))
    return record


def written(whole, wording=lambda place: f"new wording {'abcde'[place]} of it"):
    """A valid answer for each training clip."""
    given = whole.split("train").captions.groupby("clip", sort=False)["caption"]
    return [answer(clip, [wording(place) for place in range(5)], texts.tolist()) for clip, texts in given]


class TestParse:
    @pytest.mark.parametrize(
        "text",
        [
            json.dumps(NEW),
            json.dumps({"captions": NEW, "tags": ["dog", "rain"]}),
            json.dumps({"result": {"new_descriptions": NEW}}),
            json.dumps({f"caption_{place}": caption for place, caption in enumerate(NEW)}),
            json.dumps([{"id": "1", "caption": caption} for caption in NEW]),
            f"Sure, [as you asked]:\n```json\n{json.dumps(NEW, indent=2)}\n```\nI hope it helps [a lot].",
            f"```{json.dumps(NEW)}```",
            f'You gave {{"captions": {json.dumps(OWN)}}}. Mine: {json.dumps(NEW)}',
            f"<think>maybe {json.dumps(OWN)}</think>{json.dumps(NEW)}",
            repr(NEW),
            json.dumps(NEW)[:-1] + ",]",
            json.dumps([f"{place + 1}. {caption}" for place, caption in enumerate(NEW)]),
            "Here they are:\n\n"
            + "\n".join(f"{place + 1}. {caption}" for place, caption in enumerate(NEW))
            + "\n\nEnjoy!",
            "\n".join(f'**{place + 1})** "{caption}"' for place, caption in enumerate(NEW)),
            "\n".join(f"Caption {place + 1}: {caption}" for place, caption in enumerate(NEW)),
            "\n".join(f"- “{caption}”" for caption in NEW),
            "Captions:\n" + "\n".join(NEW),
        ],
    )
    def test_every_form_of_the_same_answer_is_understood(self, text):
        assert parse(text) == NEW

    @pytest.mark.parametrize(
        "text", ["", " \n", "[]", "{}", "[1, 2]", '["A dog barks.", "It ra', "```json\n```", "[[[["]
    )
    def test_where_there_are_no_captions_there_are_none(self, text):
        assert parse(text) == []

    def test_a_refusal_in_words_is_no_five_captions(self):
        assert problems(parse("I cannot help with that."), OWN) == ["count: 1 captions, not 5"]

    @given(st.lists(st.text(), min_size=5, max_size=5))
    def test_any_text_comes_back_from_json_but_for_its_ends(self, texts):
        found = parse(json.dumps([f"x{text}x" for text in texts]))
        assert found == [f"x{text}x" for text in texts]

    @settings(max_examples=300, deadline=None)
    @given(st.text("[]{}\"',:\\n1-*a<>/ `\n") | st.text())
    def test_no_answer_breaks_it(self, text):
        assert all(isinstance(caption, str) for caption in parse(text))

    def test_a_model_that_loops_is_parsed_in_time(self):
        began = time.process_time()
        parse("[" * 20_000), parse("['a', " * 2_000), parse("[1" * 5_000)
        assert time.process_time() - began < 1


class TestProblems:
    def broken(self, captions, originals=OWN):
        return {(found.rule, found.caption) for found in findings(captions, originals)}

    def changed(self, caption):
        return self.broken([caption, *NEW[1:]])

    def test_a_good_answer_has_none(self):
        assert problems(NEW, OWN) == [] and self.broken(NEW) == set()

    def test_they_name_rule_caption_and_what_it_is(self):
        assert problems(["A dog in Vienna barks at 2", *NEW[1:4]], OWN) == [
            "count: 4 captions, not 5",
            "digits: caption 1: digits: 2",
            "names: caption 1: names: Vienna",
        ]

    @pytest.mark.parametrize(
        "caption, rule",
        [
            ("", "empty"),
            (" …! ", "empty"),
            ("\u200f\u200b", "empty"),
            (" ".join(["rain"] * 21), "words"),
            ("rain at 5", "digits"),
            ("rain at ٥", "digits"),
            ("x² falls", "digits"),
            ("½ of it", "digits"),
            ("it rains in Graz", "names"),
            ("NYC in the rain", "names"),
            (OWN[3].upper() + "!", "repeated"),
            ("  a DOG barking – in the rain ", "repeated"),
            (NEW[1], "repeated"),
            ("two hounds woof", "number words"),
            ("while rain falls a dog barks", "near copies"),
        ],
    )
    def test_each_rule(self, caption, rule):
        captions = [*NEW[1:], caption]
        assert self.broken(captions) - {("names", 4)} == {(rule, 4)} - {("names", 4)}
        assert rule != "names" or ("names", 4) in self.broken(captions)

    def test_twenty_words_are_not_too_many(self):
        assert ("words", 0) not in self.changed(" ".join(["rain"] * 20))

    @pytest.mark.parametrize(
        "caption", ["then I hear I'm wet", "on the TV", "AM radio", "Woofs. Then quiet", 'he says: "No"']
    )
    def test_what_is_no_name(self, caption):
        assert names(caption, set()) == []

    def test_a_name_of_the_originals_is_no_new_one(self):
        assert names("a street in Paris", {"paris"}) == []
        assert problems(["A street in Paris", *NEW[1:]], ["PARIS by night"]) == []

    def test_composed_and_decomposed_letters_are_the_same(self):
        composed, decomposed = (unicodedata.normalize(form, "Café noises") for form in ("NFC", "NFD"))
        assert plain(composed) == plain(decomposed) != plain("Cafe noises")
        assert self.broken([decomposed, *NEW[1:]], [composed]) == {("repeated", 0)}


class TestParaphrase:
    def check(self, captions, made, count=CAPTIONS):
        assert len(made) == count == len({plain(caption) for caption in made})
        assert not {plain(caption) for caption in made} & {plain(caption) for caption in captions}
        assert all(len(caption.split()) <= MOST_WORDS for caption in made)
        rules = {found.rule for found in findings(made, captions)} - {"number words", "near copies", "count"}
        assert not rules, (made, rules)

    def test_soundscapes_get_new_wordings_without_frames(self):
        whole = load_corpus("soundscapes", train=300, validation=1, test=1)
        framed = 0
        for clip, texts in whole.captions.groupby("clip")["caption"]:
            made = paraphrase(texts.tolist(), clip)
            self.check(texts.tolist(), made)
            framed += sum(caption.lower().startswith(PREFIXES[1:]) for caption in made)
        assert framed < 0.02 * 5 * len(whole)

    def test_no_event_comes_in(self):
        """By the nouns that only one event of the soundscapes has."""
        nouns = {"bird": "bird", "dog": "dog|hound", "rain": "rain", "siren": "siren", "bell": "bell", "saw": "saw"}
        nouns |= {"frog": "frog|toad", "thunder": "thunder", "waves": "waves|sea|ocean", "phone": "phone|telephone"}
        nouns |= {"clock": "clock|watch", "fire": "fire|flames|burning", "helicopter": "helicopter|chopper"}
        nouns |= {"insect": "insect|bug|cricket|bee|flies"}

        def heard(texts):
            return {name for name, words in nouns.items() if re.search(rf"\b({words})", " ".join(texts).lower())}

        whole = load_corpus("soundscapes", train=200, validation=1, test=1, seed=3)
        found = set()
        for clip, texts in whole.captions.groupby("clip")["caption"]:
            texts = [re.sub("flies overhead|flies|saws", "", text) for text in texts]
            made = [re.sub("flies overhead|flies above|flies|saws", "", text) for text in paraphrase(texts, clip)]
            assert heard(made) <= heard(texts)
            found |= heard(made)
        assert found == set(nouns)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.text(max_size=80), min_size=1, max_size=5), st.text(max_size=5))
    def test_any_captions_with_a_word(self, captions, seed_text):
        captions.append("rain")
        made = paraphrase(captions, seed_text)
        self.check(captions, made)
        assert made == paraphrase(captions, seed_text)

    WORDS = (
        "a the A Dog barks while as then and followed by with , 3 12 7up TV I is someone car rain in background . again"
    )

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=40).map(" ".join), max_size=5))
    def test_any_captions_of_everyday_words(self, captions):
        captions.append("an engine")
        self.check(captions, paraphrase(captions, "clip"))

    @pytest.mark.parametrize("captions", [["🐕"], ["雨"], ["x"], ["x", "X."], ODD, ["rain " * 60], ["a, " * 30 + "b"]])
    def test_short_long_and_odd_ones(self, captions):
        self.check(captions, paraphrase(captions, "clip"))

    def test_digits_become_words_or_go(self):
        made = paraphrase(["2 dogs and 747 cats"], "clip")
        assert all("two" in caption.lower() and "cats" in caption and "7" not in caption for caption in made)

    def test_it_depends_on_captions_seed_and_nothing_else(self):
        assert paraphrase(OWN, "a") == paraphrase(OWN, "a")
        assert len({tuple(paraphrase(OWN, seed)) for seed in "abcdef"}) > 1

    def test_clauses_change_places(self):
        texts = ["A dog barks while rain falls on a roof", "A bell rings, then an engine starts"]
        made = " ".join(paraphrase(texts, "clip", 20)).lower()
        assert "rain falls on a roof, a dog barks" in made or "rain comes down on a roof, a dog barks" in made
        assert "after a bell rings" in made

    def test_a_phrase_that_looks_like_a_joint_is_left_alone(self):
        made = paraphrase(["a fire engine waits for a while as well as a motor"], "clip", 12)
        assert all("fire engine" in caption and "as well as a motor" in caption for caption in made)

    def test_many_are_made_of_one_and_more_than_there_are_is_an_error(self):
        self.check(["rain"], paraphrase(["rain"], "clip", 30), 30)
        most = len(PREFIXES) * len(SUFFIXES) - 1
        with pytest.raises(ValueError, match=f"'clip': 99 paraphrases wanted, the rules make {most}; ask for fewer"):
            paraphrase(["rain"], "clip", 99)

    @pytest.mark.parametrize("captions", [[], [""], [" … ", "\u200f"], ["747"]])
    def test_captions_without_a_word_are_an_error(self, captions):
        with pytest.raises(ValueError, match="'clip': no caption with a word in it, so there is nothing to paraphrase"):
            paraphrase(captions, "clip")


class TestRecord:
    def test_answers_come_back_as_they_were(self):
        answers = [
            answer("Straße ‮.wav\u2028", ODD, ["x\ud800\u2028", "e\u0301"], usage={"total_tokens": 7}, finish="stop")
        ]
        record = recorded("odd", answers)
        assert record.read_bytes().isascii() and record.read_bytes().count(b"\n") == 1
        held = read(record)
        assert held.answers == answers and held.bad_lines == [] and held.captions == {answers[0].clip: ODD}

    def test_captions_are_read_from_the_answer_and_not_believed(self):
        entry = json.loads(answer("a").line()) | {"captions": ["x"], "problems": ["names: x"]}
        entry_bad = json.loads(answer("b", NEW[:4]).line()) | {"captions": NEW, "problems": []}
        record = recorded("m", [])
        record.write_text(json.dumps(entry) + "\n" + json.dumps(entry_bad) + "\n")
        assert read(record).captions == {"a": NEW}

    def test_the_latest_valid_answer_counts(self):
        other = [caption + " again" for caption in NEW]
        record = recorded("m", [answer("a"), answer("a", other), answer("a", "no"), answer("b", finish="length")])
        assert read(record).captions == {"a": other}
        assert read(record).answers[3].problems == ["cut off: the answer ended by 'length'"]

    def test_damaged_lines_are_listed_and_the_others_read(self):
        record = recorded("m", [])
        lines = [b"{", answer("a").line()[:-1], b"\xff\xfe", b"[1]", b'{"clip": 3}', b"", answer("b").line()[:-1]]
        record.write_bytes(b"\n".join([*lines, answer("c").line()[:50]]))
        held = read(record)
        assert set(held.captions) == {"a", "b"} and [number for number, _ in held.bad_lines] == [1, 3, 4, 5, 8]
        assert held.bad_lines[3][1] == "field 'clip' is missing or no str"

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2_000))
    def test_a_record_cut_anywhere_loses_its_last_line_at_most(self, size):
        whole = b"".join(answer(clip).line() for clip in "abc")
        record = recorded("cut", [])
        record.write_bytes(whole[:size])
        assert len(read(record).answers) >= whole[:size].count(b"\n") and len(read(record).bad_lines) <= 1

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "paraphrase", "phi-4", "a b"])
    def test_a_name_that_is_none_is_refused(self, name):
        with pytest.raises(ValueError, match="give a name of letters"):
            path(name)


class TestCorpus:
    def test_paraphrases_join_or_replace_the_captions_of_training_clips_alone(self):
        plain_one, both, alone = (
            corpus(),
            corpus(synthetic="paraphrase"),
            corpus(synthetic="paraphrase", use="synthetic"),
        )
        for split in ("validation", "test"):
            for other in (both, alone):
                assert other.split(split).captions.equals(plain_one.split(split).captions)
        own = plain_one.split("train").captions.groupby("clip")["caption"].agg(list)
        new = alone.split("train").captions.groupby("clip")["caption"].agg(list)
        assert (both.split("train").captions.groupby("clip")["caption"].agg(list) == own + new).all()
        assert (new.map(len) == 5).all() and len({plain_one.fingerprint, both.fingerprint, alone.fingerprint}) == 3
        assert both.problems().empty and both.clips.equals(plain_one.clips) and both.events.equals(plain_one.events)
        assert both.captions.dtypes.equals(plain_one.captions.dtypes)
        assert both.fingerprint == corpus(synthetic="paraphrase").fingerprint
        assert both.source.endswith("training captions and those of rules")

    def test_audio_is_packed_once_for_all(self):
        assert corpus().audio_fingerprint("train") == corpus(synthetic="paraphrase").audio_fingerprint("train")

    def test_it_comes_after_holding_out(self):
        held = corpus(synthetic="paraphrase", hold_out=2)
        counts = held.captions.groupby("clip").size()
        validation = held.clips["clip"][held.clips["split"] == "validation"]
        assert len(validation) == 2 and (counts[validation] == 5).all() and (counts.drop(validation) == 10).all()

    def test_a_record(self):
        recorded("phi4", written(corpus()))
        both = corpus(synthetic="phi4")
        assert both.captions["caption"].str.startswith("new wording").sum() == 30
        assert corpus(synthetic="phi4", use="synthetic").captions["clip"].value_counts().eq(5).all()
        assert both.source.endswith("of the record phi4")

    def test_those_that_phi4_wrote_for_clotho(self, home):
        folder = dataset_layouts.clotho(home / "clotho", {"train": 3, "validation": 2, "test": 2}, 0.1)
        with pytest.raises(FileNotFoundError, match="run: atr data phi4"):
            load_corpus("clotho", check=False, synthetic="phi-4")
        own = pd.read_csv(folder / "clotho_captions_development.csv")
        new = [[f"phi {clip} {number}" for number in range(5)] for clip in range(3)]
        rows = [[*row, *texts] for row, texts in zip(own.to_numpy().tolist(), new, strict=True)]
        header = ["file_name", *(f"caption_{number}" for number in range(1, 11))]
        dataset_layouts.table(home / "phi4" / clotho.PHI4, header, rows)
        both, alone = (load_corpus("clotho", check=False, synthetic="phi-4", use=use) for use in ("both", "synthetic"))
        texts = alone.split("train").captions.groupby("clip", sort=False)["caption"].agg(list)
        assert dict(zip(own["file_name"].str.removesuffix(".wav"), new, strict=True)) == {
            clip.removeprefix("train/"): captions for clip, captions in texts.items()
        }
        counts = both.captions.groupby("clip").size()
        assert (counts[texts.index] == 10).all() and (counts.drop(texts.index) == 5).all()
        assert both.source.endswith("training captions and those by phi-4")
        dataset_layouts.table(home / "phi4" / clotho.PHI4, header, rows[:1])
        with pytest.raises(ValueError, match="no captions of 2 of 3 training clips, as .*: atr data phi4"):
            load_corpus("clotho", check=False, synthetic="phi-4")

    def test_missing_captions_are_an_error_that_says_how_many_and_what_to_do(self):
        record = recorded("phi4", written(corpus())[:4])
        with open(record, "ab") as file:
            file.write(b'{"half')
        message = (
            f"{record} (1 damaged lines, the first is line 5): no valid captions for 2 of 6 training clips "
            "('train-00004', 'train-00005'); run `atr caption` again with --name phi4"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            corpus(synthetic="phi4")

    def test_captions_of_clips_that_only_have_the_same_name_do_not_count(self):
        recorded("phi4", written(corpus()))
        with pytest.raises(ValueError, match="no valid captions for 6 of 6 training clips"):
            corpus(synthetic="phi4", seed=1)

    def test_no_record_at_all(self, home):
        where = re.escape(str(home / "captions" / "phi4.jsonl"))
        with pytest.raises(
            ValueError, match=f"{where}: no such record of captions; make it: atr caption <corpus> --name"
        ):
            corpus(synthetic="phi4")
        assert path("phi4").parent == places.home() / "captions"

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"use": "none", "synthetic": "paraphrase"}, "use is 'none'; known: synthetic, both"),
            ({"use": "synthetic"}, "use='synthetic' needs new captions: give synthetic=<name>"),
            ({"synthetic": "../x"}, "record '../x': give a name"),
            ({"sythetic": "x"}, "hold_out, synthetic, use"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            corpus(**options)

    def test_the_use_is_checked_below_too(self):
        with pytest.raises(ValueError, match="use: unknown 'all'"):
            with_synthetic(soundscapes.load(**SIZES), "paraphrase", "all")

    def test_odd_captions_reach_the_corpus_unchanged(self):
        recorded("odd", written(corpus(), wording=lambda place: ODD[place]))
        texts = corpus(synthetic="odd", use="synthetic").split("train").captions["caption"]
        assert texts.tolist() == ODD * 6 and isinstance(texts, pd.Series)

"""Scenes: what is drawn, said and mixed agrees."""

import itertools
import random

import numpy as np
import pytest

from atr.corpora import scenes
from atr.corpora.corpus import CorpusError
from atr.corpora.scenes.scene import (
    BACKGROUND_LEVEL,
    MANY,
    RATE,
    RELATIONS,
    SYNTHETIC,
    Kind,
    Part,
    Scene,
    distinct,
    draw,
    mix,
    new_combinations,
)
from atr.corpora.scenes.wording import LOUD, LOUDLY, SOFT, SOFTLY, TIMES, Words, caption, captions, minimal_pairs

KINDS = {
    "hum": Kind(True, (1.5, 60.0), loops=True),
    "hiss": Kind(True, (2.0, 60.0), loops=True),
    "melody": Kind(True, (1.5, 4.0), pitched=True),
    "click": Kind(False, (0.2, 0.3), 0.4),
    "gong": Kind(False, (1.0, 2.5), 1.2, pitched=True),
}
WORDS = {name: Words((f"a *{name}|{name}ing|{name}s",), low=("low",), high=("high",)) for name in KINDS}


def stream(seed: int = 0, names: tuple[str, ...] = tuple(KINDS), duration: float = 10.0):
    rng = random.Random(seed)
    while True:
        yield draw(rng, names, KINDS.__getitem__, duration)


def drawn(count: int = 400, duration: float = 10.0) -> list[Scene]:
    return [scene for scene in itertools.islice(stream(duration=duration), 3 * count) if scene][:count]


@pytest.mark.parametrize("duration", [4.0, 10.0, 30.0])
def test_occurrences_lie_inside_the_scene_and_do_not_overlap_each_other(duration):
    for scene in drawn(duration=duration):
        for part in scene.parts:
            times = [time for span in part.spans for time in span]
            assert times == sorted(times)
            assert 0 <= times[0] and times[-1] <= duration
            assert part.count in (0, len(part.spans))
            assert (part.count == 0) == KINDS[part.event].sustained


def test_relations_are_true_of_the_times():
    seen = set()
    for scene in drawn():
        seen.add(scene.relation)
        first, *rest = [(part.spans[0][0], part.spans[-1][1]) for part in scene.parts]
        if scene.relation.startswith("then"):
            assert first[1] < rest[0][0]
        if scene.relation == "then then":
            assert rest[0][1] < rest[1][0]
        if scene.relation.startswith("while"):
            shared = min(first[1], rest[0][1]) - max(first[0], rest[0][0])
            assert shared > 0.4 * min(first[1] - first[0], rest[0][1] - rest[0][0])
        if scene.relation.endswith("over"):
            assert rest[-1] == (0.0, 10.0)
            assert all(part.level > scene.parts[-1].level + 3 for part in scene.parts[:-1])
    assert seen == {relation for relations in RELATIONS.values() for relation in relations}


def test_remarkable_loudness_and_pitch_are_true_of_levels_and_factors():
    parts = [part for scene in drawn() for part in scene.parts]
    levels = {word: [part.level for part in parts if part.loudness == word] for word in ("soft", "loud")}
    plain = [part.level for scene in drawn() for part in scene.parts if not part.loudness and len(part.spans[0])]
    plain = [level for level in plain if level > BACKGROUND_LEVEL[1]]
    assert max(levels["soft"]) < min(plain) and max(plain) < min(levels["loud"])
    factors = {word: [part.pitch for part in parts if part.register == word] for word in ("low", "", "high")}
    assert max(factors["low"]) < min(factors[""]) and max(factors[""]) < min(factors["high"])
    assert not any(part.register for part in parts if not KINDS[part.event].pitched)


def test_events_at_the_same_time_are_described_in_one_way():
    described = [scene.description for scene in drawn() if scene.relation == "while"]
    assert any(text.startswith("click") for text in described)
    assert all(text.split(" while ")[0].split()[0] < text.split(" while ")[1].split()[0] for text in described)


def test_captions_state_nothing_that_the_scene_does_not():
    rng = random.Random(0)
    stated = {1: "once", 2: "twice", 3: "three times"}
    times = {count: (word,) for count, word in stated.items()} | {MANY: ("many times",)}
    for scene in drawn():
        parts = {part.event: part for part in scene.parts}
        for _ in range(5):
            text = caption(rng, scene, WORDS, SYNTHETIC, times)
            words = text.replace(",", "").split()
            assert set(words) & set(parts)
            assert not any(word == name for word in words for name in set(KINDS) - set(parts))
            for word in ("low", "high"):
                assert word not in words or any(part.register == word for part in parts.values())
            for loudness, forms in {
                "soft": SOFT + SOFTLY,
                "loud": LOUD + LOUDLY,
            }.items():
                assert not set(forms) & set(words) or any(part.loudness == loudness for part in parts.values())
            for count, phrase in times.items():
                if phrase[0] in text:
                    assert any(min(part.count, MANY) == count for part in parts.values())


def test_order_words_match_the_order_of_events():
    """In every template of a sequence the events come in time's order, but for those that say "after" or "preceded"."""
    a, b, c = (Part(name, ((k, k + 1.0),)) for k, name in enumerate(("alpha", "beta", "gamma")))
    words = {name: Words((f"{name}|ing|s",)) for name in ("alpha", "beta", "gamma")}
    for scene in (Scene("then", (a, b)), Scene("then then", (a, b, c)), Scene("then over", (a, b, c))):
        for seed in range(300):
            text = caption(random.Random(seed), scene, words, SYNTHETIC)
            mentioned = [word for word in text.replace(",", "").split() if word in ("alpha", "beta")]
            if any(
                f" {word} " in f" {text.lower()} " for word in ("then", "followed", "before", "later", "afterwards")
            ):
                assert mentioned == ["alpha", "beta"], text
            if text.startswith("after "):
                assert mentioned == ["alpha", "beta"], text
            if " preceded by " in text or (" after " in text and "afterwards" not in text):
                assert mentioned == (["beta", "alpha"] if scene.relation != "then then" else ["alpha", "beta"]), text
            if scene.relation.endswith("over") and " over " in text:
                assert text.split(" over ")[1].startswith("gamma"), text


def test_five_captions_differ_and_keep_to_the_length():
    for index, scene in enumerate(drawn(100)):
        five = captions(random.Random(index), scene, WORDS, SYNTHETIC)
        assert len({text.lower().rstrip(".") for text in five}) == 5
        assert all(scenes.wording.WORDS[0] <= len(text.split()) <= scenes.wording.WORDS[1] for text in five)


def test_articles_fit_the_word_that_follows():
    words = {"engine": Words(("a *engine|running|runs",), high=("high",), low=("odd",))}
    texts = {}
    for register in ("", "low", "high"):
        scene = Scene("alone", (Part("engine", ((0.0, 1.0),), register=register),))
        texts[register] = {caption(random.Random(seed), scene, words, SYNTHETIC) for seed in range(50)}
    assert any("an engine" in text for text in texts[""]) and not any("a engine" in text for text in texts[""])
    assert any("an odd engine" in text for text in texts["low"])
    assert any("a high engine" in text for text in texts["high"])


def test_more_scenes_never_change_the_earlier_ones():
    assert distinct(stream(), 200, "here", "mend")[:50] == distinct(stream(), 50, "here", "mend")
    few = distinct(stream(names=("hum",)), 30, "here", "mend", repeats=True)
    assert few[:10] == distinct(stream(names=("hum",)), 10, "here", "mend", repeats=True)


def test_too_few_different_scenes_are_an_error_that_names_the_mend():
    with pytest.raises(CorpusError, match="here: 3 different scenes found, 30 wanted; use more events"):
        distinct(stream(names=("hum",)), 30, "here", "use more events")


def test_mix_keeps_levels_and_stays_below_full_scale():
    wave = np.sin(np.arange(3 * RATE, dtype=np.float32) * 0.3)
    quiet, plain, clipped = (
        mix(np.random.default_rng(0), [(2.0, wave, level)], 8.0, (-60.0, -46.0)) for level in (-40, -20, 6)
    )
    assert quiet.shape == (8 * RATE,) and quiet.dtype == np.float32
    inside = slice(int(2.5 * RATE), int(4.5 * RATE))
    gain = 20 * np.log10(np.std(plain[inside]) / np.std(quiet[inside]))
    assert gain == pytest.approx(20, abs=1)
    assert np.abs(clipped).max() < 1
    assert np.std(plain[inside]) > 10 * np.std(plain[: 2 * RATE])


def test_loudness_does_not_depend_on_pauses():
    burst = np.ones(RATE // 2, np.float32)
    paused = np.concatenate([burst, np.zeros(RATE, np.float32)])
    assert scenes.scene.loudness(paused) == pytest.approx(scenes.scene.loudness(burst), rel=0.01)


def test_what_has_never_sounded_together_is_no_part_of_a_known_scene():
    known, left = drawn(40), list(itertools.islice(new_combinations(stream(1), drawn(40)), 2_000))
    sets = [{part.event for part in scene.parts} for scene in known]
    kept = [{part.event for part in scene.parts} for scene in left if scene]
    assert kept and all(len(kinds) > 1 and not any(kinds <= other for other in sets) for kinds in kept)
    whole = [{part.event for part in scene.parts} for scene in itertools.islice(stream(1), 2_000) if scene]
    fresh = [kinds for kinds in whole if len(kinds) > 1 and not any(kinds <= other for other in sets)]
    assert kept == fresh and len(fresh) < len(whole)


def test_minimal_pairs_differ_in_one_aspect_and_one_of_them_is_true():
    sound = {f"{name}{form}": name for name in KINDS for form in ("ing", "s")}
    seen = set()
    for number, scene in enumerate(drawn(300)):
        parts, relation = scene.parts, scene.relation
        made = minimal_pairs(random.Random(number), scene, WORDS)
        follows, counted = relation.startswith("then"), [part for part in parts if part.count]
        wanted = {"order": follows, "number": bool(counted), "overlap": follows or relation.startswith("while")}
        assert set(made) == {aspect for aspect, there in wanted.items() if there}
        for aspect, (right, wrong, said, unsaid) in made.items():
            seen.add((aspect, said, unsaid))
            heard = [
                [sound[word] for word in text.replace(",", "").split() if word in sound] for text in (right, wrong)
            ]
            assert right != wrong and sorted(heard[0]) == sorted(heard[1])
            if aspect == "order":
                turned = heard[0] != [part.event for part in parts[:2]]
                assert turned == any(word in right for word in ("preceded", " after ")) and heard[0] == heard[1][::-1]
            elif aspect == "overlap":
                assert heard[0] == heard[1] and (said == "then") == follows
            else:
                part = next(part for part in counted if part.event == heard[0][0])
                assert said == {1: "once", 2: "twice", 3: "three times"}.get(part.count, "many times")
    assert {("overlap", "then", "while"), ("overlap", "while", "then"), ("number", "once", "twice")} <= seen
    assert not {("number", "three times", "many times"), ("number", "many times", "three times")} & seen


def test_a_number_that_a_corpus_has_no_words_for_makes_no_pair():
    repeated = {number: words for number, words in TIMES.items() if number > 1}
    made = [(scene, minimal_pairs(random.Random(0), scene, WORDS, repeated)) for scene in drawn(300)]
    assert {max((part.count for part in scene.parts), default=0) for scene, _ in made} >= {0, 1, 2, 3}
    for scene, pairs in made:
        assert ("number" in pairs) == any(part.count > 1 for part in scene.parts)
        assert "once" not in pairs.get("number", ())

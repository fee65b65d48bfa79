import re
import shutil
from types import SimpleNamespace

import ipywidgets
import matplotlib
import pytest
import torch
from made_runs import change_embeddings, run_on_three_clips, three_clips

from atr.analysis import explore, maps, widgets
from atr.corpora.containers import AudioError
from atr.reports import figures

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def nobody_looks_on(monkeypatch):
    for name in ("ATR_COMMAND", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    yield
    figures.plt.close("all")


@pytest.fixture
def corpus():
    return three_clips()


@pytest.fixture
def runs(tmp_path, corpus):
    folder = tmp_path / "runs"
    return {
        "one": run_on_three_clips(folder, "a", corpus),
        "<two>": run_on_three_clips(folder, "b", corpus, turned=True),
    }


@pytest.fixture
def explorer(runs, corpus, monkeypatch):
    monkeypatch.setattr(maps, "project", lambda audio, text, seed, neighbours: (audio[:, :2], text[:, :2]))
    return widgets.Explorer(runs, lambda config: corpus, "rain falls")


def inside(widget):
    """A widget and all that is in it, from above."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def words(widget):
    return "\n".join(part.value for part in inside(widget) if isinstance(part, ipywidgets.HTML))


def names(widget):
    """The clips on the cards."""
    return [part.tooltip.removeprefix("play ") for part in inside(widget) if isinstance(part, ipywidgets.Button)]


def test_the_sentence_is_searched_for_at_once_and_again_on_enter(explorer):
    page = explorer.pages["search"]
    assert names(page) == ["rain.wav", "bell.wav", "<dog>.wav"]
    assert "its right clip is at rank 1 of 3" in words(page) and words(page).count("✓ right clip") == 1
    assert not explorer.sentence.continuous_update
    explorer.sentence.value = "barking"
    assert names(page) == ["<dog>.wav", "bell.wav", "rain.wav"] and "1 · 1.00 · &lt;dog&gt;.wav <b" in words(page)
    assert 'alt="spectrogram of &lt;dog&gt;.wav"' in words(page) and "a dog barks &amp; barks" in words(page)
    page.children = ()
    explorer.search.click()
    assert len(names(page)) == 3


def test_an_empty_sentence_is_asked_for_and_one_without_words_is_refused(explorer):
    explorer.sentence.value = " "
    assert "Describe a sound" in words(explorer.pages["search"])
    explorer.sentence.value = "?!"
    assert "no words; describe a sound in a few" in words(explorer.pages["search"])
    explorer.sentence.value = "barking"
    assert "no words" not in words(explorer.box) and len(names(explorer.pages["search"])) == 3


def test_words_unknown_to_training_are_pointed_out(explorer, monkeypatch):
    found = explore.rank_clips(explorer.runs["one"], three_clips(), "rain falls").assign(right=False)
    monkeypatch.setattr(explore, "rank_clips", lambda *_, **__: found)
    explorer.sentence.value = "a car <hupt>"
    assert "No training caption has: hupt." in words(explorer.pages["search"])


def test_a_test_caption_can_be_drawn_and_another_after_it(explorer, corpus):
    seen = set()
    for _ in range(8):
        explorer.draw.click()
        seen.add(explorer.sentence.value)
        assert "A test caption; its right clip" in words(explorer.pages["search"])
    assert len(seen) > 2 and seen <= set(corpus.split("test").captions["caption"])


def test_two_runs_answer_side_by_side(explorer):
    explorer.sentence.value = "barking"
    explorer.other.value = "<two>"
    _, columns = explorer.pages["search"].children
    first, second = columns.children
    assert ">one</h4>" in words(first) and ">&lt;two&gt;</h4>" in words(second)
    assert names(first)[0] == "<dog>.wav" and names(second)[0] == "rain.wav"
    explorer.run.value = "<two>"  # beside itself a run stands once
    _, columns = explorer.pages["search"].children
    assert len(columns.children) == 1


def test_a_run_removed_since_says_so_and_the_other_still_answers(explorer, runs):
    shutil.rmtree(runs["<two>"].path)
    explorer.other.value = "<two>"
    first, second = explorer.pages["search"].children[1].children
    assert len(names(first)) == 3 and "no such run, it may have been removed" in words(second)
    for tab in (1, 2, 3):
        explorer.tabs.selected_index = tab
        explorer.run.value = "<two>"
        assert "no such run" in words(explorer.box)
        explorer.run.value = "one"
        assert explorer.status.value == ""


def test_a_clip_reads_its_captions_as_the_runs_rank_them(explorer):
    explorer.tabs.selected_index = 1
    assert [value for _, value in explorer.clip.options] == ["rain.wav", "<dog>.wav", "bell.wav"]
    explorer.clip.value = "bell.wav"
    page = explorer.pages["clips"]
    assert names(page) == ["bell.wav"]
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in words(page).split("</tr>")[1:-1]]
    assert rows[:2] == [["1", "a bell rings", "1.00", "✓"], ["2", "a dog barks &amp; barks", "0.96", ""]]
    assert [row[1] for row in rows if row[3] == "✓"] == ["a bell rings", "it rains"] and len(rows) == 6
    explorer.other.value = "<two>"
    assert words(page).count("<tbody>") == 2 and explorer.clip.value == "bell.wav"


def test_a_failed_query_shows_what_came_first_and_the_right_clip(explorer, runs):
    explorer.tabs.selected_index = 2
    assert explorer.query.options[0] == ("rank 3 of 3: it rains", "it rains")
    assert names(explorer.pages["failures"]) == ["<dog>.wav", "bell.wav", "rain.wav"]
    explorer.query.value = "a dog barks & barks"
    assert names(explorer.pages["failures"]) == ["bell.wav", "rain.wav", "<dog>.wav"]


def test_results_are_faded_while_others_are_made_and_say_what_they_answer(explorer, monkeypatch):
    page, styles, ranked = explorer.pages["search"], [], explore.rank_clips
    monkeypatch.setattr(explore, "rank_clips", lambda *a, **k: styles.append(page._dom_classes) or ranked(*a, **k))
    explorer.sentence.value = "barking"
    assert styles == [(widgets.BUSY,)] and page._dom_classes == () and f".{widgets.BUSY} {{" in words(explorer.box)
    assert "“barking”" in words(page) and "rain falls”" not in words(page)
    monkeypatch.setattr(explore, "rank_clips", None)  # whatever fails
    explorer.sentence.value = "a bell rings"
    assert page._dom_classes == () and "“barking”" not in words(page)


def test_a_run_without_failures_says_so(runs, corpus):
    change_embeddings(runs["one"], t2a=torch.ones(6, 1, dtype=torch.long))
    explorer = widgets.Explorer(runs, lambda config: corpus)
    explorer.tabs.selected_index = 2
    assert "Every test caption finds its clip first" in words(explorer.pages["failures"])


def test_neighbours_by_the_menu_and_by_a_click(explorer):
    explorer.tabs.selected_index = 3
    captions, clips, nearest, own = explorer.canvas.data
    page = explorer.pages["map"]
    assert explorer.canvas.layout.title.text == "one" and len(clips.x) == 3 and len(nearest.x) == 7
    assert (own.x[0], own.y[0]) == (1, 0) and names(page) == ["rain.wav", "bell.wav", "<dog>.wav"]
    explorer.point.value = "bell.wav"
    assert own.x[0] == pytest.approx(0.6) and names(page)[0] == "bell.wav" and ">a bell rings</td>" in words(page)
    explorer._on_click(clips, SimpleNamespace(point_inds=[1]))
    assert explorer.point.value == "<dog>.wav" and (own.x[0], own.y[0]) == (0, 1)
    explorer._on_click(captions, SimpleNamespace(point_inds=[2]))
    assert own.x[0] == pytest.approx(0.8) and "“a dog barks &amp; barks”" in words(page)
    explorer._on_click(clips, SimpleNamespace(point_inds=[]))
    assert own.x[0] == pytest.approx(0.8)
    explorer._on_click(clips, SimpleNamespace(point_inds=[1]))  # the clip that the menu still names
    assert names(page)[0] == "<dog>.wav" and (own.x[0], own.y[0]) == (0, 1)
    assert nearest.hoverinfo == own.hoverinfo == "skip"


def test_a_text_aware_run_has_no_map_but_says_why_and_searches(explorer, runs):
    known = runs["<two>"].embeddings
    change_embeddings(runs["<two>"], similarity=known["text"] @ known["audio"].T, audio=None)
    runs["<two>"].__dict__.pop("embeddings")
    assert explorer.canvas is None
    explorer.tabs.selected_index = 3
    explorer.run.value = "<two>"
    assert "text-aware pooling" in explorer.status.value and not explorer.pages["map"].children
    explorer.tabs.selected_index = 0
    assert len(names(explorer.pages["search"])) == 3 and explorer.status.value == ""


def test_a_tab_is_filled_when_it_is_seen_and_once(explorer, monkeypatch):
    calls, failures = [], explore.failures
    monkeypatch.setattr(explore, "failures", lambda *given: calls.append(given) or failures(*given))
    assert not explorer.pages["failures"].children
    for tab in (2, 0, 2):
        explorer.tabs.selected_index = tab
    assert len(calls) == 1
    explorer.other.value = "<two>"
    explorer.tabs.selected_index = 0
    explorer.tabs.selected_index = 2
    assert len(calls) == 2


def test_a_button_becomes_the_player_of_its_clip(corpus):
    reads = []
    object.__setattr__(corpus, "read", lambda clip: reads.append(clip) or three_clips().read(clip))
    place = widgets.player(corpus, "bell.wav")
    assert not reads
    place.children[0].click()
    (audio,) = place.children
    assert reads == ["bell.wav"] and audio.value[:4] == b"RIFF" and audio.format == "wav" and not audio.loop


def test_a_sound_that_cannot_be_read_says_so(corpus):
    def broken(clip):
        raise AudioError(clip, "no such file", "restore it")

    object.__setattr__(corpus, "read", broken)
    place = widgets.player(corpus, "bell.wav")
    place.children[0].click()
    assert "bell.wav: no such file; restore it" in words(place)


def test_every_control_has_a_label(explorer):
    controls = (ipywidgets.Dropdown, ipywidgets.Text, ipywidgets.Button)
    found = [part for part in inside(explorer.box) if isinstance(part, controls)]
    assert len(found) > 8 and all(part.description for part in found)


def test_show_gives_a_picture_and_to_a_looker_on_the_explorer(runs, corpus, tmp_path, monkeypatch):
    def shown(**more):
        return widgets.show(runs, lambda config: corpus, "it rains", **more)

    figure = shown(folder=tmp_path, name="00_search")
    assert figure.get_suptitle() == "NT-Xent · frozen · seed 0: “it rains”" and figures.plt.get_fignums() == []
    assert (tmp_path / "figures" / "00_search.pdf").is_file()
    assert '"a"' in (tmp_path / "figures" / "00_search.json").read_text()
    monkeypatch.setenv("JPY_SESSION_NAME", "00.ipynb")
    assert isinstance(shown(), ipywidgets.VBox)
    with pytest.raises(ValueError, match="no runs to explore"):
        widgets.Explorer({})

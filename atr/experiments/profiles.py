"""What each profile fixes: the one table behind `profile_name` in every notebook."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atr.config import RunConfig
from atr.experiments.recipes import (
    MEI2022,
    PAPER_RATES,
    RECIPES,
    SIGMOID_RATE,
    SMALL_BASE,
    SMALL_EPOCHS,
    SMALL_RATES,
    SMALL_SCHEDULES,
    SMALL_THESIS,
    THESIS_RECIPES,
)
from atr.system import places

if TYPE_CHECKING:  # what reads data takes seconds to import, which the command line's errors need not wait for
    from atr.corpora.corpus import Corpus


@dataclass(frozen=True)
class Profile:
    """A profile: data, encoders and sizes; nothing else differs between profiles.

    corpora   name shown in tables → `RunConfig.corpus`
    base      fields of every RunConfig; `epochs` and `rates` by kind of training, `batch_sizes` by corpus
    recipes   the recipe of the tables first, further ones beside it: fields of their RunConfigs, and under "frozen" how
              frozen rows are trained
    training  how encoders train in questions that frozen ones can answer as well as fine-tuned ones: "frozen" where
              `epochs` are too few for fine-tuned ones to converge
    external  corpora that every finished run is tested on, too, by the word that heads their columns in tables; the
              corpus "people" is the folder that ATR_PEOPLE names, a table and its sounds, where it is set
    seeds     default seeds; `published`: our runs are the published experiment, so differences may be computed
    """

    name: str
    corpora: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    epochs: Mapping[str, int]
    rates: Mapping[str, Mapping[str, float]]
    schedules: Mapping[str, str] = field(default_factory=lambda: {"frozen": "step", "finetuned": "step"})
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"code": {"frozen": "frozen"}})
    base: Mapping[str, Any] = field(default_factory=dict)
    training: str = "finetuned"
    wide_epochs: int = 1  # times `epochs` of frozen encoders, in batches of twice the usual size: half the steps
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    thesis_share: float = 0.5  # of the full rates, in runs by the thesis's recipes
    cnns: tuple[str, str] = ("compact", "compact_resnet")  # for CNN14 and ResNet38
    source: Mapping[str, Any] = field(default_factory=dict)  # corpus that transfer starts on
    submission: Mapping[str, Any] = field(default_factory=dict)  # corpus that a challenge's systems are trained on
    thesis_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"code": SMALL_THESIS})
    # What a search of the learning rate tries first, in steps of `rates.STEP` from the usual one.
    tries: tuple[int, ...] = (-2, -1, 0, 1)
    # Of the heads' rate, for text-aware pooling: the best of 1, 0.3 and 0.1 on validation data of demo (seed 0).
    pooling_share: float = 0.1
    external: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notebooks: tuple[str, ...] = ()  # that the profile serves; all if none are named
    needs_clips: bool = False
    needs_captions: bool = False
    published: bool = False
    quick: bool = False  # the smallest grids: whether everything runs, and not what comes of it

    @property
    def results(self) -> Path:
        """`results/<profile>/`: tables, figures, executed notebooks and runs."""
        return places.results_home() / self.name

    @property
    def runs(self) -> Path:
        return self.results / "runs"

    @property
    def root(self) -> Path | None:
        """Folder of labelled clips where the profile needs one: ATR_CLIPS, else ESC-50 if `atr data esc50` has it."""
        if not self.needs_clips:
            return None
        return self._place_of(
            "ATR_CLIPS",
            "esc50",
            "needs a folder of labelled clips (ESC-10, ESC-50 or any folder/<class>/<clip>); pass it: make study "
            f"PROFILE={self.name} CLIPS=<folder>, or set ATR_CLIPS, or fetch ESC-50: atr data esc50",
        )

    def fewer(self, seeds: Sequence[int]) -> Sequence[int]:
        """Seeds of controls and second tables: three where they are fine-tuned in a small profile, elsewhere all."""
        return seeds if self.published or self.training == "frozen" else seeds[:3]

    def external_corpora(self) -> "dict[str, Corpus]":
        """The corpora of `external`. FileNotFoundError: one is not here; where it comes from, on one line."""
        from atr.corpora import corpus_of

        people, loaded = places.place("ATR_PEOPLE"), {}
        for title, options in self.external.items():
            folder = people if options["name"] == "people" else None
            try:
                loaded[title] = corpus_of({"name": "csv", "split": "test"} if folder else options, folder or self.root)
            except FileNotFoundError as error:
                line = "; ".join(str(error).splitlines())
                own = "; or set ATR_PEOPLE to a folder of recordings with captions.csv" * (options["name"] == "people")
                raise FileNotFoundError(f"tables have no columns {title!r}: {line}{own}") from None
        return loaded

    def words(self) -> str | None:
        """A table for `text_contrast` of captions by people, less the clips whose captions `external` tests on: of the
        tables that ATR_WORDS names, else of Clotho's that `atr data clotho` brought; None: there are none here.
        """
        from atr.corpora import catalogue
        from atr.corpora.captioning import language

        tables = places.paths_of("ATR_WORDS")
        if not tables:
            with suppress(FileNotFoundError):
                tables = sorted(catalogue.folder("clotho").rglob("clotho_captions_*.csv"))
        with suppress(FileNotFoundError):  # then nothing is tested on
            tested = [text for corpus in self.external_corpora().values() for text in corpus.captions["caption"]]
            return language.collect(tables, tested) if tables else None
        return None

    @property
    def captions(self) -> Path | None:
        """Table of real captions where the profile needs one: ATR_CAPTIONS, else what `atr data phi4` brought."""
        if not self.needs_captions:
            return None
        from atr.corpora.catalogue import PHI4

        place = self._place_of(
            "ATR_CAPTIONS",
            "phi4",
            "needs Clotho's captions and phi-4's, as Tymofieiev 2025 published them; fetch them: atr data phi4, or "
            f"pass the table: make study PROFILE={self.name} CAPTIONS=<file>, or set ATR_CAPTIONS",
        )
        return place / PHI4.name if place.is_dir() else place

    def _place_of(self, variable: str, name: str, otherwise: str) -> Path:
        """What an environment variable names, else where the data set `name` lies; ValueError with the mend."""
        if path := places.place(variable, file=variable == "ATR_CAPTIONS"):
            if not path.exists():
                raise ValueError(f"{variable}: {path}: no such file or folder; {otherwise}")
            return path
        from atr.corpora import catalogue

        try:
            return catalogue.folder(name)
        except FileNotFoundError:
            raise ValueError(f"profile {self.name}: {otherwise}") from None

    def name_of(self, config: RunConfig) -> str:
        """The name under which tables show a config's corpus."""
        return next((name for name, corpus in self.corpora.items() if corpus == config.corpus), config.corpus["name"])

    def config(
        self,
        corpus: str,
        training: str,
        loss: str,
        seed: int,
        rate: float = 1.0,
        recipe: str | None = None,
        **changes: Any,
    ) -> RunConfig:
        """A run on one of the profile's corpora; `rate` scales every learning rate of the kind of training; `recipe`
        is one of the profile's, the first if None.
        """
        by_recipe = dict(self.recipes[recipe or next(iter(self.recipes))])
        frozen = by_recipe.pop("frozen")
        kind = "finetuned" if training == "scratch" else training  # everything is trained in both
        rates = {group: value * rate for group, value in self.rates[kind].items()}
        epochs = self.epochs[kind]
        fields = {
            "corpus": self.corpora[corpus],
            "training": frozen if training == "frozen" else training,
            "loss": {"name": loss},
            "learning_rates": rates,
            "epochs": epochs,
            "schedule": self.schedules[kind],
            "step_epochs": max(1, round(0.4 * epochs)),  # as 20 of 50 in Mei et al. 2022
            "batch_size": self.batch_sizes.get(corpus, 32),
            "seed": seed,
        }
        return RunConfig(**{**fields, **self.base, **by_recipe, **changes})

    def thesis(
        self,
        seed: int,
        encoder: str = "ATST",
        loss: str = "nt_xent",
        training: str = "finetuned",
        audio_share: float = 1.0,
        text_aware: bool = False,
        pooling_share: float | None = None,
        recipe: str | None = None,
        **changes: Any,
    ) -> RunConfig:
        """A run by a recipe of Tymofieiev 2025, on the last of the profile's corpora.

        encoder is "PaSST" or "ATST", or what stands for it; its learning rate is `audio_share` times the recipe's, that
        of text-aware pooling `pooling_share` times the heads' (None: the profile's).
        """
        fields = dict(self.thesis_recipes[recipe or next(iter(self.thesis_recipes))])
        encoders = {name: fields.pop(name) for name in ("PaSST", "ATST")}
        pooling = fields.pop("text_aware")
        usual = {group: rate * self.thesis_share for group, rate in self.rates["finetuned"].items()}
        rates: dict[str, Any] = dict(fields.pop("learning_rates", usual))
        if training == "frozen":
            rates = dict(self.rates["frozen"])
        else:
            rates["audio"] = float(f"{rates.get('audio', rates['heads']) * audio_share:.6g}")  # 4e-06, to the digit
        parameters: dict[str, Any] = {"temperature": 0.05, "same_clip": "positive"} if loss == "nt_xent" else {}
        if parameters and fields.get("recipe") == "text":
            parameters["weight"] = 0.5  # equation 3.2
        rates |= {"loss": SIGMOID_RATE} if loss == "sigmoid" else {}
        fields |= {"loss": {"name": loss, **parameters}, "learning_rates": rates, **encoders[encoder]}
        if text_aware:
            share = self.pooling_share if pooling_share is None else pooling_share
            rates["pooling"] = float(f"{rates['heads'] * share:.6g}")
            fields["text_aware"] = pooling
        run = self.config(list(self.corpora)[-1], training, loss, seed)
        return run.replace(**fields | {"training": training} | changes)


# Scenes at the rate of mn04, of recordings that nobody described.
MIXTURE = {"rate": 32_000, "without": "described"}
# For `Profile.external`: people's own words for real recordings.
PEOPLE = {"people": {"name": "people"}}
# Half of the embedded ones.
OTHER_EVENTS = "bees bell clapping clock crickets dripping engine fire footsteps frog telephone wind".split()


def scenes(train: int, validation: int, test: int, name: str = "soundscapes") -> dict[str, Any]:
    return {"name": name, "train": train, "validation": validation, "test": test}


_ESC50 = MIXTURE | scenes(2000, 300, 500, "clipfolder")
PROFILES = {
    "smoke": Profile(
        "smoke",
        corpora={"soundscapes": {**scenes(48, 12, 24), "duration": 4.0}},
        seeds=(0, 1),
        epochs={"frozen": 3, "finetuned": 1},
        rates=SMALL_RATES,
        base={"embedding_dim": 64},
        batch_sizes={"soundscapes": 16},
        tries=(0,),
        quick=True,
        source={**scenes(48, 12, 24), "duration": 4.0, "seed": 1, "events": OTHER_EVENTS},
        submission={**scenes(48, 12, 0), "duration": 4.0, "hold_out": 8},
    ),
    "demo": Profile(
        "demo",
        corpora={"soundscapes": scenes(1000, 200, 500)},
        seeds=(0, 1, 2, 3, 4),
        epochs=SMALL_EPOCHS,
        rates=SMALL_RATES,
        schedules=SMALL_SCHEDULES,
        # A run of NT-Xent (seed 0) takes 103 s, with two layers 164 s; its test mAP@10 is 47.8, with two 48.2.
        base=SMALL_BASE | {"text_layers": 1},
        source={**scenes(1000, 200, 300), "seed": 1, "events": OTHER_EVENTS},
        submission={**scenes(1000, 200, 0), "hold_out": 100},
        external={"unseen": {**scenes(1000, 200, 500), "unseen": True}},
    ),
    "esc50": Profile(
        "esc50",
        corpora={"scenes of ESC-50": _ESC50},
        seeds=(0, 1, 2, 3, 4),
        # Twice ten epochs of fine-tuning bring 2.1 to 3.7 points of validation mAP@10, by method (seed 0).
        epochs={"frozen": 20, "finetuned": 10},
        training="frozen",
        # After the usual 20, 20 more bring 0.9 (D 512) to 3.6 points (D 8) of validation mAP@10 (seed 0).
        wide_epochs=3,
        # Half of demo's, on validation data (seed 0, 3 epochs): NT-Xent is alike at 1 and 1/3 of demo's and worse at
        # 1/9, triplet-max alike at 1/3 and 1/9 and fails at 1.
        rates=SMALL_RATES | {"finetuned": {"heads": 1e-3, "audio": 5e-4, "text": 1.5e-4}},
        schedules=SMALL_SCHEDULES,
        # Two layers of text take a fifth longer; validation mAP@10 of NT-Xent (seeds 0 and 1) is 73.6, with two 74.5.
        base=SMALL_BASE | {"audio_encoder": "mn04", "audio_layers": 3, "text_layers": 1},
        cnns=("mn04", "mn04"),
        source=scenes(1000, 200, 500),
        submission={**_ESC50, "test": 0, "hold_out": 100},
        external=PEOPLE,
        needs_clips=True,
    ),
    "paper": Profile(
        "paper",
        corpora={"AudioCaps": {"name": "audiocaps"}, "Clotho": {"name": "clotho"}},
        seeds=(0, 1, 2),
        epochs={"frozen": 50, "finetuned": 50},
        rates=PAPER_RATES,
        base=MEI2022,
        recipes=RECIPES,
        thesis_recipes=THESIS_RECIPES,
        pooling_share=1.0,
        batch_sizes={"AudioCaps": 32, "Clotho": 24},
        thesis_share=1.0,
        cnns=("cnn14_mei2022", "resnet38"),
        source={"name": "audiocaps"},
        submission={"name": "clotho", "hold_out": 100},
        published=True,
    ),
}
# The same for a folder of other classes, such as ESC-10.
PROFILES["esc10"] = replace(PROFILES["esc50"], name="esc10", corpora={"scenes of ESC-10": _ESC50})
# Real captions by people and by a language model, without their sounds: nothing is trained.
PROFILES["captions"] = Profile("captions", {}, (0, 1, 2), {}, {}, notebooks=("10", "11"), needs_captions=True)


def get_profile(name: str) -> Profile:
    """A profile by its name; where it mixes recordings without those that people described, and ATR_WITHOUT names a
    file of other ids, one per line, without those. ValueError: there is no such profile or file.

    >>> demo = get_profile("demo")
    >>> demo.seeds, list(demo.corpora)
    ((0, 1, 2, 3, 4), ['soundscapes'])
    """
    if name not in PROFILES:
        raise ValueError(f"profile: unknown {name!r}; known: {', '.join(PROFILES)}")
    profile, listed = PROFILES[name], places.place("ATR_WITHOUT", file=True)
    if listed is None or not any("without" in options for options in profile.corpora.values()):
        return profile
    try:
        ids = sorted(set(listed.read_text(encoding="utf-8").split()))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"ATR_WITHOUT: {listed}: {error}; give a text file of ids, one per line") from error
    if not ids:
        raise ValueError(f"ATR_WITHOUT: {listed}: holds no ids; give those of recordings, one per line")

    def without(options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**options, "without": ids} if "without" in options else options

    corpora = {title: without(options) for title, options in profile.corpora.items()}
    return replace(profile, corpora=corpora, source=without(profile.source), submission=without(profile.submission))

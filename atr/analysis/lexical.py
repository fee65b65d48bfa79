"""How rich the words of captions are, by source, and how alike captions are in meaning: Tymofieiev 2025, section 4.4.

Words are those of the package lexicalrichness (Shen 2022): lower case; digits and hyphens deleted ("walkie-talkie" is
one word); other punctuation parts words ("person's" is two). That package knows the signs of ASCII alone; here those of
all scripts count alike (`ascii_signs`). Words must have blanks between them, see `texts`.

Every measure of richness depends on the length of a text, and on short ones MTLD turns over: see `mtld`. So texts are
measured by three units, a caption, a clip's captions and a whole corpus, and once more at equal length
(`equal_lengths`).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, combinations
from math import comb
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from lexicalrichness import LexicalRichness, tokenize
from scipy import stats
from torch import Tensor

from atr.corpora import clotho, corpus_of
from atr.experiments.profiles import Profile
from atr.metrics import statistics

Unit = Literal["caption", "clip", "corpus"]

THRESHOLD = 0.72  # of MTLD: the package's default
MEASURES = {"mtld": "MTLD", "mattr": "MATTR", "hdd": "HD-D"}
# Scripts without blanks between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]+"
)
LONGEST_WORD = 4  # letters of theirs that a caption without any blank may have and still be one word


class WindowSizes(NamedTuple):
    """Words of a window of MATTR and of a draw of HD-D. Texts that have fewer have no value."""

    window: int
    draws: int


SIZES: dict[Unit, WindowSizes] = {
    "caption": WindowSizes(8, 8),
    "clip": WindowSizes(25, 42),
    "corpus": WindowSizes(50, 42),
}


def sources(profile: Profile) -> pd.DataFrame:
    """Training captions to compare, one row per caption: clip, source, caption.

    With `profile.captions`, a table: Clotho's, five a clip, "human", and after them five by a language model, "phi-4".
    Otherwise those of the profile's last corpus: "human" where the data are the published ones, else "grammar".
    OSError or ValueError: what cannot be read, and what to do.
    """
    if profile.captions is None:
        corpus = list(profile.corpora)[-1]
        train = corpus_of(profile.corpora[corpus], profile.root).split("train")
        return train.captions.assign(source="human" if profile.published else "grammar")[["clip", "source", "caption"]]
    table = clotho.phi4(profile.captions)
    rows = [(file, "human", text) for file, texts, _ in table for text in texts]
    rows += [(file, "phi-4", text) for file, _, texts in table for text in texts]
    return pd.DataFrame(rows, columns=["clip", "source", "caption"])


class _Signs(dict):
    """For str.translate: outside of ASCII, letters and their marks stay; digits, apostrophes and hyphens become those
    of ASCII, characters without a width nothing, and all others a blank.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if code < 128:
            self[code] = character
        elif character in "‘’ʼʹ´′＇":
            self[code] = "'"
        elif character in "\u2010\u2011－":
            self[code] = "-"
        elif category == "Nd":
            self[code] = str(unicodedata.digit(character))
        elif category[0] in "LM":
            self[code] = character
        else:
            self[code] = "" if category == "Cf" and character != "\u200b" else " "
        return self[code]


_SIGNS = _Signs()


def ascii_signs(text: str) -> str:
    """A text whose letters and accents are composed, with no other signs and digits than those of ASCII."""
    return unicodedata.normalize("NFC", text).translate(_SIGNS)


def words(text: str) -> list[str]:
    """The words of a text, as the module's docstring says."""
    return tokenize(ascii_signs(text))


def mtld(tokens: Sequence[str]) -> float:
    """Measure of textual lexical diversity (McCarthy and Jarvis 2010), in words; NaN without words.

    The mean number of words over which the share of distinct ones stays above 0.72, read forwards and backwards; what
    is left over at the end counts as a part of such a stretch, by how far the share has fallen. A text that repeats no
    word has fallen nowhere, and the package gives its number of words. One repetition among ten words gives 28. So on
    captions, which repeat a word or do not, a repetition makes MTLD two to four times as large.
    """
    return LexicalRichness(list(tokens), None, None).mtld(THRESHOLD) if tokens else np.nan


def mattr(tokens: Sequence[str], window: int) -> float:
    """Moving-average type-token ratio (Covington and McFall 2010): the mean share of distinct words in all windows of
    `window` consecutive ones, from 0 to 1; NaN where there are fewer words.
    """
    return LexicalRichness(list(tokens), None, None).mattr(window) if len(tokens) >= window else np.nan


def hdd(tokens: Sequence[str], draws: int) -> float:
    """HD-D (McCarthy and Jarvis 2007): the expected share of distinct words among `draws` drawn without replacement,
    from 0 to 1; NaN where there are fewer words. It does not depend on their order, nor, as such, on their number.

    Exact, and for long texts far faster than the package's, which asks for a distribution at each word.
    """
    number = len(tokens)
    if number < draws:
        return np.nan
    every = comb(number, draws)
    times = Counter(Counter(tokens).values())  # how often a word occurs → how many words do
    return sum(many * (1 - comb(number - often, draws) / every) for often, many in sorted(times.items())) / draws


def falls(tokens: Sequence[str], threshold: float = THRESHOLD) -> bool:
    """Whether the share of distinct words, from the first on, falls to the threshold: one whole stretch of MTLD."""
    distinct: set[str] = set()
    for number, token in enumerate(tokens, 1):
        distinct.add(token)
        if len(distinct) <= threshold * number:
            return True
    return False


def texts(captions: pd.DataFrame, unit: Unit, parts: int = 1, seed: int = 0) -> pd.DataFrame:
    """What is measured, one row per text: group, source, tokens (a list of words). captions: clip, source, caption.

    caption: each on its own, its clip is its group. clip: those of a clip, joined in order. corpus: those of all clips,
    in shuffled order; dealt to so many parts by clip, which are the groups, numbered from 0.

    ValueError: a caption in Chinese, Japanese, Thai or the like without blanks, which would count as one word.
    """
    if unit not in SIZES:
        raise ValueError(f"unit is {unit!r}; known: {', '.join(map(repr, SIZES))}")
    for caption in captions["caption"]:
        if len(caption.split()) == 1 and sum(map(len, WITHOUT_SPACES.findall(caption))) > LONGEST_WORD:
            raise ValueError(f"caption {caption!r}: no blanks between its words; put them there (a segmenter does)")
    split = [words(caption) for caption in captions["caption"]]
    table = pd.DataFrame({"group": captions["clip"].to_numpy(), "source": captions["source"].to_numpy()})
    table["tokens"] = pd.Series(split, dtype=object)
    if unit == "caption":
        return table
    if unit == "corpus":
        clips = table["group"].unique()
        if not 1 <= parts <= len(clips):
            raise ValueError(f"parts is {parts}; the {len(clips)} clips can be dealt to 1 to {len(clips)}")
        rng = np.random.default_rng(seed)
        part = pd.Series(rng.permutation(len(clips)) % parts, index=clips)
        table["group"] = table["group"].map(part)
        table = table.iloc[rng.permutation(len(table))]
    joined = (
        table.groupby(["group", "source"], sort=False)["tokens"].agg(lambda lists: list(chain(*lists))).reset_index()
    )
    order = {source: place for place, source in enumerate(captions["source"].unique())}
    return joined.iloc[np.argsort(joined["source"].map(order), kind="stable")].reset_index(drop=True)


def equal_lengths(table: pd.DataFrame, length: int | None = None) -> pd.DataFrame:
    """Texts, as `texts` gives them, cut to equal length: to `length` words, without those that have fewer; or, without
    it, each to the shortest text of its group, where one source or more has a single text a group.
    """
    if length is not None:
        long = table[table["tokens"].map(len) >= length]
        return long.assign(tokens=[tokens[:length] for tokens in long["tokens"]])
    shortest = table["tokens"].map(len).groupby(table["group"]).transform("min")
    cut = [tokens[:most] for tokens, most in zip(table["tokens"], shortest, strict=True)]
    return table.assign(tokens=pd.Series(cut, index=table.index, dtype=object))


def measure(table: pd.DataFrame, size: WindowSizes) -> pd.DataFrame:
    """Texts, as `texts` gives them, measured: group, source, tokens, types (how many words, and distinct ones), falls
    (see there), and the columns of `MEASURES`.
    """
    measures: dict[str, Callable[[list[str]], Any]] = {
        "tokens": len,
        "types": lambda tokens: len(set(tokens)),
        "falls": falls,
        "mtld": mtld,
        "mattr": lambda tokens: mattr(tokens, size.window),
        "hdd": lambda tokens: hdd(tokens, size.draws),
    }
    columns = {name: [take(tokens) for tokens in table["tokens"]] for name, take in measures.items()}
    return table[["group", "source"]].assign(**columns)


def richness(captions: pd.DataFrame, unit: Unit = "caption", parts: int = 1, seed: int = 0) -> pd.DataFrame:
    """Captions (clip, source, caption) measured by one unit, one row per text: `measure` of its `texts`."""
    return measure(texts(captions, unit, parts, seed), SIZES[unit])


def compare(
    measured: pd.DataFrame,
    column: str = "mtld",
    sources: tuple[str, str] = ("human", "phi-4"),
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """One source less the other by one measure, paired by group: a group's value is the mean over its texts.

    groups: how many have both. The two sources' medians over texts. difference, low, high: the median of the paired
    differences and its 95 % interval, groups resampled with replacement. d: their mean in their standard deviations
    (Cohen's d of pairs). rank_biserial: from -1 to 1, the share of the rank sum in favour of the first source less that
    in favour of the second (Kerby 2014). p: Wilcoxon's signed-rank test.

    ValueError: a source that is not there, or fewer than two groups with both.
    """
    _check(sources, measured)
    means = measured.groupby(["group", "source"])[column].mean().unstack()[list(sources)].dropna()
    if len(means) < 2:
        raise ValueError(
            f"{len(means)} groups with {column} of both {sources[0]!r} and {sources[1]!r}, compared in pairs; give "
            "captions of both sources for the same clips, under the same names, long enough for the measure"
        )
    first, second = measured.groupby("source")[column].median()[list(sources)]
    difference = (means[sources[0]] - means[sources[1]]).to_numpy()
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(difference, len(difference))) for _ in range(draws)]
    low, high = np.quantile(medians, [0.025, 0.975])
    spread = difference.std(ddof=1)
    apart = difference[difference != 0]
    ranks = stats.rankdata(np.abs(apart))
    return {
        "groups": len(means),
        sources[0]: first,
        sources[1]: second,
        "difference": float(np.median(difference)),
        "low": float(low),
        "high": float(high),
        "d": float(difference.mean() / spread) if spread else np.nan,
        "rank_biserial": float((ranks * np.sign(apart)).sum() / ranks.sum()) if len(apart) else 0.0,
        "p": float(stats.wilcoxon(apart).pvalue) if len(apart) else 1.0,
    }


def _check(sources: tuple[str, str], table: pd.DataFrame) -> None:
    """ValueError: a source that the table does not have."""
    names = sorted(table["source"].unique())
    if absent := [name for name in sources if name not in names]:
        raise ValueError(f"no source {absent[0]!r}; known: {', '.join(names)}")


def claims(
    measured: Mapping[str, pd.DataFrame],
    sources: tuple[str, str] = ("human", "phi-4"),
    columns: Collection[str] = tuple(MEASURES),
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Judge "captions of the first source are richer" by each unit and measure, a row each: unit, measure, what
    `compare` gives, p with Holm's correction over the table, and the verdict by it and the sign of rank_biserial.

    measured: words for the unit → table of `measure` or `richness`.
    """
    rows = [
        {"unit": unit, "measure": MEASURES[column], **compare(table, column, sources)}
        for unit, table in measured.items()
        for column in columns
    ]
    result = pd.DataFrame(rows)
    result["p (Holm)"] = statistics.holm(result["p"].to_numpy())
    pairs = zip(result["rank_biserial"], result["p (Holm)"], strict=True)
    return result.assign(verdict=[statistics.judge(pair, alpha) for pair in pairs]).drop(columns="p")


def deviations(measured: pd.DataFrame, column: str = "mtld") -> pd.DataFrame:
    """`measured` with each text's distance from its source's median in the place of `column`, so that `claims` judges
    which source spreads wider (Brown and Forsythe 1974, paired by group).
    """
    middle = measured.groupby("source")[column].transform("median")
    return measured.assign(**{column: (measured[column] - middle).abs()})


def having(captions: pd.DataFrame, word: str) -> pd.DataFrame:
    """Clips × sources: 100 where one of the clip's captions by the source has the word, else 0."""
    has = pd.Series([100.0 * (word in words(caption)) for caption in captions["caption"]], captions.index)
    return has.groupby([captions["clip"], captions["source"]]).max().unstack(fill_value=0)


def reasons(measured: pd.DataFrame) -> pd.DataFrame:
    """What MTLD rests on, by source: texts; medians of tokens, types and MTLD; percent of texts that repeat no word,
    and of those in which a whole stretch of MTLD fits; median MTLD where no word is repeated and where one is; rank
    correlation (Spearman) of MTLD with the number of words, in those two and in all.
    """
    rows = {}
    for source, table in measured.groupby("source", sort=False):
        once = table[table["types"] == table["tokens"]]
        again = table[table["types"] < table["tokens"]]
        rows[source] = {
            "texts": len(table),
            **{name: table[name].median() for name in ("tokens", "types", "mtld")},
            "without repetition (%)": 100 * len(once) / len(table),
            "a whole stretch (%)": 100 * table["falls"].mean(),
            "mtld without": once["mtld"].median(),
            "mtld with": again["mtld"].median(),
            "length and mtld": table["mtld"].corr(table["tokens"], "spearman")
            if table["tokens"].nunique() > 1
            else np.nan,
        }
    return pd.DataFrame(rows).T.rename_axis("source")


def counts(captions: pd.DataFrame, leave_out: Collection[str] = ()) -> pd.DataFrame:
    """How often each source has each word: words in alphabetical order × sources. Letters on their own ("s" of
    "person's") are left out, as are the words of `leave_out`.
    """
    tables = {
        source: Counter(
            word for caption in group["caption"] for word in words(caption) if len(word) > 1 and word not in leave_out
        )
        for source, group in captions.groupby("source", sort=False)
    }
    return pd.DataFrame(tables).fillna(0).astype(int).sort_index().rename_axis("word")


def stop_words() -> set[str]:
    """The English stop words of the package wordcloud, as `words` takes them apart."""
    from wordcloud import STOPWORDS

    return {part for word in STOPWORDS for part in words(word)}


def frequent(captions: pd.DataFrame, number: int = 100) -> pd.DataFrame:
    """The words that each source has most often, without stop words: source, word, count,
    per_1000 (of all words that are counted); ties in alphabetical order.
    """
    table = counts(captions, stop_words())
    rows = [
        (source, word, count, 1000 * count / column.sum())
        for source, column in table.items()
        for word, count in column.sort_values(ascending=False, kind="stable").head(number).items()
        if count
    ]
    return pd.DataFrame(rows, columns=["source", "word", "count", "per_1000"])


def distinctive(
    captions: pd.DataFrame, sources: tuple[str, str] = ("human", "phi-4"), number: int = 20, prior: float = 1000
) -> pd.DataFrame:
    """The words that tell two sources apart most, `number` of each: word, its counts, log_odds (nats, above 0: the
    first source has it more), z. Stop words are kept, as they tell too.

    Log-odds ratios with an informative Dirichlet prior, equations 16, 19 and 22 of Monroe, Colaresi and Quinn 2008: to
    each source are added `prior` words of the two together, so that rare words do not come first; z is in standard
    errors.
    """
    _check(sources, captions)
    table = counts(captions[captions["source"].isin(sources)])[list(sources)]
    both = table + prior * table.sum(axis=1).to_numpy()[:, None] / table.to_numpy().sum()
    odds = np.log(both / (both.sum() - both))
    table["log_odds"] = odds[sources[0]] - odds[sources[1]]
    table["z"] = table["log_odds"] / np.sqrt((1 / both).sum(axis=1))
    table = table.sort_values("z", ascending=False, kind="stable").reset_index()
    return pd.concat([table[table["z"] > 0].head(number), table[table["z"] < 0].tail(number)], ignore_index=True)


def closeness(captions: pd.DataFrame, embeddings: Tensor) -> pd.DataFrame:
    """How alike a clip's captions are in meaning, one row per clip: mean cosine over all pairs of captions "within"
    each source, "between" each two sources, and from a source to its captions of all "other clips", the floor.

    captions: clip, source, caption; embeddings: (captions, D) of length 1, as `encoders.text.sentences` gives them. NaN
    where a clip has no such pair. ValueError: not one embedding per caption.
    """
    if len(captions) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings of {len(captions)} captions; give one of each, in order")
    codes, clips = pd.factorize(captions["clip"])
    sums, sizes = {}, {}
    for source in captions["source"].unique():
        rows = np.flatnonzero(captions["source"] == source)
        row = torch.from_numpy(codes[rows])
        part = embeddings[rows].double()
        sums[source] = torch.zeros(len(clips), embeddings.shape[1], dtype=torch.float64).index_add_(0, row, part)
        sizes[source] = torch.bincount(row, minlength=len(clips)).double()
    columns = {}
    for source, total in sums.items():
        size, everything = sizes[source], total.sum(0)
        columns[f"within {source}"] = (total.square().sum(1) - size) / (size * (size - 1))
        columns[f"{source}, other clips"] = (total @ everything - total.square().sum(1)) / (size * (size.sum() - size))
    for first, second in combinations(sums, 2):
        product = sizes[first] * sizes[second]
        columns[f"between {first} and {second}"] = (sums[first] * sums[second]).sum(1) / product
    result = pd.DataFrame({name: column.numpy() for name, column in columns.items()}, index=clips)
    return result.rename_axis("clip").replace([np.inf, -np.inf], np.nan)

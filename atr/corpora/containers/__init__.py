"""What an audio file states of its length, checked against what the file holds.

libsndfile trusts the wrong one of the two: of most containers it takes the file's size, so that a file cut short reads
as a whole one, and of an MP3 the size over that of its first frame, or what a header says of the first of two joined
files.
"""

import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

from atr.corpora.containers import mpeg

CONVERT = "convert it to WAV, FLAC, OGG or MP3, or fetch it again"
FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG"}  # others do not tell what they lack
# By a file's first bytes: where its chunks begin, a chunk's id and size, the id of the one that holds the sound, the
# size that this has without any, and what its size is rounded up to.
CHUNKS = {
    b"RIFF": (12, "<4sI", b"data", 0, 2),
    b"RIFX": (12, ">4sI", b"data", 0, 2),
    b"RF64": (12, "<4sI", b"data", 0, 2),
    b"FORM": (12, ">4sI", b"SSND", 8, 2),
    b"caff": (8, ">4sq", b"data", 4, 1),
    b"riff": (40, "<16sq", bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), 24, 8),  # W64
}
STREAMINFO = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
SUFFIXES = {"WAV": ".wav", "WAVEX": ".wav", "FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}  # by soundfile's formats
MPEG_SUFFIXES = {".mp1", ".mp2", ".mp3", ".mpa", ".mpga"}


class AudioError(ValueError):
    """An audio file that cannot be used: which one (`where`), why (`problem`), and what to do about it (`mend`)."""

    def __init__(self, where: str | os.PathLike[str], problem: str, mend: str) -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        super().__init__(f"{self.where}: {problem}; {mend}")

    def __reduce__(self) -> tuple:  # an exception with three arguments does not unpickle by itself
        return type(self), (self.where, self.problem, self.mend)


class Stream(NamedTuple):
    """What libsndfile decodes at a time: a file, or a part of it. exact: it holds `frames` to the last sample."""

    source: str | io.IOBase
    frames: int
    rate: int
    exact: bool = True
    seekable: bool = True

    def open(self) -> soundfile.SoundFile:
        if not isinstance(self.source, str):
            self.source.seek(0)
        file = soundfile.SoundFile(self.source)
        if not self.seekable:  # soundfile would seek after each read, which FLAC of unknown length does not bear
            file.seekable = lambda: False
        return file


def streams(path: str | os.PathLike[str]) -> list[Stream]:
    """The streams of a file, one after another: one but for files that were joined. All have the same sample rate.

    AudioError: it is missing, unreadable, empty, or shorter than it states.
    """
    if not Path(path).is_file():
        raise AudioError(path, "no such file", "restore it or remove it from the corpus")
    if not Path(path).stat().st_size:
        raise AudioError(path, "0 bytes", "delete it or fetch it again")
    try:
        result = _streams(path)
    except UnicodeEncodeError:
        raise AudioError(path, "a name that is not UTF-8", "rename it") from None
    except RuntimeError as error:
        raise AudioError(path, f"unreadable ({getattr(error, 'error_string', error)})", CONVERT) from None
    if not sum(stream.frames for stream in result):
        raise AudioError(path, "0 samples", "delete it or fetch it again")
    rates = list(dict.fromkeys(stream.rate for stream in result))
    if len(rates) > 1:
        problem = f"joined of parts at {' and '.join(map(str, rates))} Hz"
        raise AudioError(path, problem, "split it, or convert it to one rate")
    return result


def short(path: str | os.PathLike[str], present: float, stated: float) -> AudioError:
    """The error for a file that holds `present` of `stated` seconds."""
    problem = f"cut short: {present:.2f} s of the {stated:.2f} s that its header states"
    return AudioError(path, problem, "fetch it again")


def _streams(path: str | os.PathLike[str]) -> list[Stream]:
    with open(path, "rb") as file:
        begin = file.read(8)
    magic = begin[:4]
    if magic == b"OggS":
        return _ogg(path, Path(path).read_bytes())
    chunked = magic in CHUNKS or magic in (b".snd", b"dns.")
    named = Path(path).suffix.lower() in MPEG_SUFFIXES
    if not chunked and magic != b"fLaC" and (named or mpeg.MARK.match(begin)):
        if parts := _mpeg(path, Path(path).read_bytes()):
            return parts
    sound = _sound(path, magic) if chunked else None
    source: str | io.IOBase = str(path)
    if sound and sound.unknown:
        source = _WholeHeader(path, sound)
    elif sound and sound.stated < sound.present and magic in (b"riff", b".snd", b"dns."):
        source = io.BytesIO(Path(path).read_bytes()[: sound.origin + sound.stated])  # else what follows is heard too
    lacks = sound is not None and sound.present < sound.stated and not sound.unknown
    try:
        info = soundfile.info(source)
    except RuntimeError:
        if not lacks:
            raise
        assert sound is not None
        problem = f"cut short: {sound.present} of the {sound.stated} bytes of sound that its header states"
        raise AudioError(path, problem, "fetch it again") from None
    if info.format not in FORMATS:
        raise AudioError(path, f"of the format {info.format}, which does not show whether a file is whole", CONVERT)
    if info.format == "FLAC":
        return _flac(path)
    if sound and lacks:
        seconds = info.frames / info.samplerate
        raise short(path, seconds, seconds * (sound.stated - sound.empty) / max(1, sound.present - sound.empty))
    if sound and info.subtype.startswith("MPEG"):
        with open(path, "rb") as file:
            file.seek(sound.origin)
            if parts := _mpeg(path, file.read(sound.present if sound.unknown else sound.stated)):
                return parts
    return [Stream(source, info.frames, info.samplerate)]


class _Sound(NamedTuple):
    """The sound in a file: where its size stands and how it is written, from where it counts, the bytes that it states
    and those that are there, and its size without sound. unknown: its writer did not come to state it.
    """

    place: int
    code: str
    origin: int
    stated: int
    present: int
    empty: int
    unknown: bool


def _sound(path: str | os.PathLike[str], magic: bytes) -> _Sound | None:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if magic in (b".snd", b"dns."):
            code = ">I" if magic == b".snd" else "<I"
            begin, stated = struct.unpack(code[0] + "4x2I", file.read(12).ljust(12, b"\0"))
            return _judge(8, code, begin, stated, size - begin, 0, stated == 0)
        name, empty = CHUNKS[magic][2:4]
        chunks = _chunks(file, magic)
        for chunk, place, code, origin, stated, _ in chunks:
            if chunk == name:
                ends = list(chunks)
                left_open = stated <= empty and (ends[-1][-1] if ends else origin + stated) != size
                return _judge(place, code, origin, stated, size - origin, empty, left_open)
    return None


def _judge(place: int, code: str, origin: int, stated: int, present: int, empty: int, left_open: bool) -> _Sound:
    # What programs write before they know: 0, the highest number, or one below 2 GiB (sox: 0x7f000000, 0x7ffff000).
    guess = code[1] == "I" and (0x7F000000 <= stated <= 0x80000000 or stated >= 0xFFFFF000)
    unknown = present > empty and (left_open or stated < 0 or guess and stated > present)
    return _Sound(place, code, origin, stated, present, empty, unknown)


def _chunks(file: io.BufferedReader, magic: bytes) -> Iterator[tuple[bytes, int, str, int, int, int]]:
    """Each chunk's id, the place of its size and how it is written, from where it counts, the size, and its end."""
    at, layout, _, counted, multiple = CHUNKS[magic]
    head, long = struct.calcsize(layout), (0, 0)
    while 0 <= at < os.fstat(file.fileno()).st_size:
        file.seek(at)
        content = file.read(head)
        if len(content) < head:
            return
        chunk, size = struct.unpack(layout, content)
        if not chunk[:4].isascii() or not chunk[:4].decode().isprintable():
            return
        place, code = at + len(chunk), layout[0] + layout[-1]
        if chunk == b"ds64":  # RF64's own sizes: of the file, then of the sound
            place64 = at + head + 8
            file.seek(place64)
            long = place64, *struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if magic == b"RF64" and chunk == b"data" and long[0]:
            (place, size), code = long, "<q"
        origin = at if counted == 24 else at + head  # W64 counts the head too
        before, at = at, origin + size + -size % multiple
        yield chunk, place, code, origin, size, at
        if at < before + head:  # a size that cannot be
            return


class _WholeHeader(io.FileIO):
    """A file whose header states as much sound as is there."""

    def __init__(self, path: str | os.PathLike[str], sound: _Sound) -> None:
        super().__init__(path)
        highest = 0xFFFFFFFF if sound.code[1] == "I" else sound.present
        self._size, self._place = struct.pack(sound.code, min(sound.present, highest)), sound.place

    def readinto(self, buffer: Any) -> int:
        at, count = self.tell(), super().readinto(buffer) or 0
        for place, byte in enumerate(self._size, self._place - at):
            if 0 <= place < count:
                buffer[place : place + 1] = bytes([byte])
        return count


def _flac(path: str | os.PathLike[str]) -> list[Stream]:
    begins, before, at = [], b"", 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            begins += [at - len(before) + match.start() for match in STREAMINFO.finditer(before + block)]
            before, at = block[-7:], at + len(block)
    if len(begins) < 2:
        parts: list[str | io.IOBase] = [str(path)]
    else:
        data, ends = Path(path).read_bytes(), [*begins[1:], None]
        parts = [io.BytesIO(data[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    return [_count_frames(part) for part in parts]


def _count_frames(source: str | io.IOBase) -> Stream:
    """A FLAC stream; decoded to its end where it does not state how long it is."""
    info = soundfile.info(source)
    stream = Stream(source, info.frames, info.samplerate)
    if info.frames < 1 << 62:
        return stream
    stream = stream._replace(seekable=False)
    with stream.open() as file:
        frames = 0
        while count := len(file.read(1 << 18, dtype="float32")):
            frames += count
    return stream._replace(frames=frames)


def _ogg(path: str | os.PathLike[str], data: bytes) -> list[Stream]:
    """The links of an Ogg file. Each begins with its streams' first pages, and each stream ends with a last page."""
    at, begins = 0, list[int]()
    following, opened, ended = dict[int, int](), set[int](), set[int]()
    while (at := data.find(b"OggS", at)) >= 0:
        if len(data) < at + 27 or len(data) < (
            end := at + 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        ):
            raise AudioError(path, "cut short: its last page is incomplete", "fetch it again")
        kind, (serial, number) = data[at + 5], struct.unpack_from("<2I", data, at + 14)
        if kind & 2:
            if not begins or opened <= ended:
                begins.append(at)
            opened.add(serial)
            ended.discard(serial)
        elif number != following.get(serial, number):
            raise AudioError(path, f"page {following[serial]} is missing", "fetch it again")
        following[serial] = number + 1
        if kind & 4:
            ended.add(serial)
        at = end
    if opened - ended:
        raise AudioError(path, "cut short: its last page is missing", "fetch it again")
    whole = len(begins) < 2
    parts = [str(path)] if whole else [io.BytesIO(data[a:b]) for a, b in zip(begins, [*begins[1:], None], strict=True)]
    facts = [(part, soundfile.info(part)) for part in parts]
    return [Stream(part, info.frames, info.samplerate, exact=False) for part, info in facts]


class _Frames(io.BytesIO):
    """MPEG frames, said to take 4 GiB: libsndfile stops at the length that it guesses by the size."""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(offset + (whence == 2) * (1 << 32), whence)

    def readinto(self, buffer: Any) -> int:
        if self.tell() > len(self.getbuffer()):  # it looks for a tag in the last bytes
            buffer[:] = bytes(len(buffer))
            return len(buffer)
        return super().readinto(buffer)


def _mpeg(path: str | os.PathLike[str], data: bytes) -> list[Stream]:
    """The streams of MPEG frames: each begins where another header frame, or frames of another format, are met.

    libsndfile gets frames alone, so that it neither guesses a length nor complains of what lies between.
    """
    parts, result = mpeg.pieces(data), []
    for piece in parts.pieces:
        samples, rate = piece.form.samples, piece.form.rate
        whole = piece.size > 0 and len(piece.header) + len(parts.frames(piece)) >= piece.size
        if piece.count + whole < piece.stated:  # some count the header's frame too
            raise short(path, piece.count * samples / rate, piece.stated * samples / rate)
        if parts.cut and piece is parts.pieces[-1]:
            problem = f"cut short: its last frame, after {piece.count * samples / rate:.2f} s, is incomplete"
            raise AudioError(path, problem, "fetch it again")
        if not piece.count:
            continue
        if not piece.header or piece.stated != piece.count:  # a header with another number would mislead
            result.append(Stream(_Frames(parts.frames(piece)), piece.count * samples, rate, exact=False))
            continue
        source = io.BytesIO(parts.stream(piece))
        result.append(Stream(source, soundfile.info(source).frames, rate, exact=False))
    return result

"""MPEG audio (MP1, MP2, MP3) frame by frame: which bytes of a file are frames, and how many samples they hold."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

MARK = re.compile(rb"\xff[\xe2-\xff]|ID3|APETAGEX")  # where a frame or a tag may begin
BITRATES = {  # kbit/s by version (2: MPEG-2 and 2.5) and layer
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Format(NamedTuple):
    """What the frames of one stream share. samples: of a frame; rate: in Hz."""

    version: int
    layer: int
    rate: int
    mono: bool
    samples: int


@dataclass
class Piece:
    """Frames that belong together.

    header: the frame in front of them that holds no sound but what libsndfile trusts (Xing's); empty without one.
    stated: the number of frames by it, or by Fraunhofer's (VBRI); 0 if unknown. size: the bytes by it, -1 if unknown.
    """

    form: Format
    header: bytes = b""
    stated: int = 0
    size: int = -1
    count: int = 0
    runs: list[list[int]] = field(default_factory=list)  # where their bytes begin and end


@dataclass
class Pieces:
    """The pieces of a file. cut: the last frame is not all there."""

    data: bytes
    pieces: list[Piece] = field(default_factory=list)
    cut: bool = False

    def frames(self, piece: Piece) -> bytes:
        return b"".join(self.data[begin:end] for begin, end in piece.runs)

    def stream(self, piece: Piece) -> bytes:
        """Header and frames, the header with the right number of bytes, without which a warning is printed."""
        frames, place = self.frames(piece), _tag(piece.header, piece.form) + 12
        header = piece.header
        if piece.size >= 0:
            header = header[:place] + (len(header) + len(frames)).to_bytes(4) + header[place + 4 :]
        return header + frames


def pieces(data: bytes) -> Pieces:
    """A piece begins at a header frame, and where frames of another format follow. Tags are left out, and whatever is
    no frame that another of its format follows.
    """
    result, at = Pieces(data), 0
    before: Format | None = None  # of the frame that ends at `at`
    while at < len(data):
        frame = _frame(int.from_bytes(data[at : at + 4])) if at + 4 <= len(data) else None
        if frame and (frame[0] == before or _has_follower(data, at + frame[1], frame[0])):
            before, size = frame
            if at + size > len(data):
                result.cut = True
                break
            _add(result.pieces, data, at, size, before)
            at += size
        elif before and len(data) < at + 4 and data[at] == 0xFF:
            result.cut = True
            break
        else:
            before, mark = None, MARK.search(data, at + 1)
            at = _after_tag(data, at) or (mark.start() if mark else len(data))
    return result


def _add(pieces: list[Piece], data: bytes, at: int, size: int, form: Format) -> None:
    tag = _tag(data[at : at + size], form)
    if tag or not pieces or pieces[-1].form != form:
        pieces.append(Piece(form))
    piece = pieces[-1]
    if not tag:
        piece.count += 1
        if piece.runs and piece.runs[-1][1] == at:
            piece.runs[-1][1] = at + size
        else:
            piece.runs.append([at, at + size])
    elif data[at + tag : at + tag + 4] == b"VBRI":
        piece.stated = int.from_bytes(data[at + tag + 14 : at + tag + 18])
    elif (flags := data[at + tag + 7]) & 1:
        piece.header = data[at : at + size]
        piece.stated = int.from_bytes(data[at + tag + 8 : at + tag + 12])
        piece.size = int.from_bytes(data[at + tag + 12 : at + tag + 16]) if flags & 2 else -1


def _tag(frame: bytes, form: Format) -> int:
    """Where in a header frame its content begins; 0 if it is a frame of sound."""
    if form.layer != 3:
        return 0
    side = 4 + ((9 if form.mono else 17) if form.version == 2 else (17 if form.mono else 32))
    if frame[side : side + 4] in (b"Xing", b"Info"):
        return side
    return 36 if frame[36:40] == b"VBRI" else 0


def _has_follower(data: bytes, end: int, form: Format) -> bool:
    following = _frame(int.from_bytes(data[end : end + 4])) if end + 4 <= len(data) else None
    tagged = data[end : end + 3] in (b"TAG", b"ID3", b"APE")
    return end == len(data) or tagged or bool(following and following[0] == form)


def _after_tag(data: bytes, at: int) -> int | None:
    """Where a tag of ID3v2 or APEv2 at `at` ends; None: there is none."""
    if data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = sum((byte & 127) << shift for byte, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=True))
        return at + 10 + size + 10 * (data[at + 5] >> 4 & 1)  # a footer repeats the header
    if data[at : at + 8] == b"APETAGEX" and len(data) >= at + 32:
        size, flags = (int.from_bytes(data[place : place + 4], "little") for place in (at + 12, at + 20))
        return at + 32 + size * (flags >> 29 & 1)  # a header is before what `size` counts, a footer after it
    return None


@cache
def _frame(header: int) -> tuple[Format, int] | None:
    """Format and bytes of a frame that begins with these four bytes; None: none does, or one of free bitrate."""
    version, layer, bits, rate = header >> 19 & 3, 4 - (header >> 17 & 3), header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    lower = 1 if version == 3 else 2
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bitrate, padding = 1000 * BITRATES[lower, layer][bits], header >> 9 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and lower == 2 else 1152
    size = 4 * (12 * bitrate // hertz + padding) if layer == 1 else samples // 8 * bitrate // hertz + padding
    return Format(lower, layer, hertz, header >> 6 & 3 == 3, samples), size

"""What an audio file's container promises and libsndfile does not hold it to: bytes of sound, pages, MPEG frames."""

import re
import struct
from io import BytesIO
from os import PathLike
from typing import BinaryIO

import soundfile

RIFF = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}
KILOBITS = {  # (MPEG-1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}

MARK = re.compile(rb"\xff[\xe0-\xff]|ID3")
TAG = re.compile(rb"^.{4,40}?(Xing|Info)(.{4})(.{4})|^.{36}(VBRI).{10}(.{4})", re.DOTALL)


def promise(path: str | PathLike[str]) -> tuple[int, int, int, str] | None:
    """Where a file's sound begins, its bytes stated and present, and the stated size's place and struct format.

    As "place:format". None: a container that states no size, or none that is known here.
    """
    with open(path, "rb") as file:
        whole = file.seek(0, 2)
        file.seek(0)
        head = file.read(64)
        magic, wide = head[:4], None
        if magic in (b".snd", b"dns.") and len(head) >= 12:
            order = "><"[magic == b"dns."]
            begin, stated = struct.unpack_from(order + "II", head, 4)
            return begin, stated, whole - begin, f"8:{order}I"
        if magic == b"2BIT" and len(head) >= 30:
            bits, stereo, frames = (
                struct.unpack_from(">h", head, 14)[0],
                head[12:14] != b"\0\0",
                struct.unpack_from(">I", head, 26)[0],
            )
            return 128, frames * (bits // 8) * (1 + stereo), whole - 128, "26:>I"
        if magic == b"NIST":
            file.seek(0)
            text = file.read(1024)
            found = [re.search(rb"%s -i (\d+)" % key, text) for key in (b"sample_count", b"channel_count")]
            width = re.search(rb"sample_n_bytes -i (\d+)", text)
            if not all(found) or not width or not text[8:16].strip().isdigit():
                return None
            count, channels = (int(one[1]) for one in found if one)
            begin = int(text[8:16])
            return (begin, count * channels * int(width[1]), whole - begin, "0:>I") if count else None
        if magic in RIFF and head[8:12] == b"WAVE":
            place, form, ident, pad, inside = 12, RIFF[magic] + "I", b"data", 2, 0
        elif magic == b"FORM":
            place, form, ident, pad, inside = 12, ">I", b"BODY" if head[8:12] in (b"8SVX", b"16SV") else b"SSND", 2, 0
        elif magic == b"caff":
            place, form, ident, pad, inside = 8, ">Q", b"data", 1, 0
        elif magic == b"riff" and head[24:28] == b"wave":
            place, form, ident, pad, inside = 40, "<Q", b"data", 8, 24
        else:
            return None
        size, name = struct.calcsize(form), 16 if inside else 4
        while True:
            file.seek(place)
            chunk = file.read(name + size)
            if len(chunk) < name + size:
                return None
            (stated,) = struct.unpack_from(form, chunk, name)
            begin = place + name + size
            if chunk[:4] == b"ds64":
                wide = begin + 8, *struct.unpack("<Q", file.read(16)[8:])
            if chunk[:4] == ident:
                present = whole - begin
                where = f"{place + name}:{form}"
                if wide is not None and stated == 0xFFFFFFFF:
                    stated, where = wide[1], f"{wide[0]}:<Q"
                if stated == inside and _chunks(file, begin, whole, form):
                    present = 0  # what follows are more chunks: there is no sound
                return begin, stated - inside, present, where
            place = begin + stated - inside
            place += -place % pad


def _chunks(file: BinaryIO, place: int, whole: int, form: str) -> bool:
    """Whether a RIFF's or AIFF's chunks, from `place` on, end where the file does."""
    while form[1:] == "I" and place + 8 <= whole:
        file.seek(place)
        name, size = struct.unpack(form[0] + "4sI", file.read(8))
        if not re.fullmatch(rb"[A-Za-z][A-Za-z0-9_ ]{2}[A-Za-z0-9 ]", name):
            return False
        place += 8 + size + size % 2
    return place in (whole, whole + 1)


def unknown(stated: int, form: str) -> bool:
    """Whether a stated size is what a writer of streams leaves that cannot seek back: 0, or just below a power of 2."""
    top = 1 << (31 if form[-1] == "I" else 63)
    return stated == 0 or any(0 <= limit - stated <= 8192 for limit in (top, 2 * top))


def ogg(path: str | PathLike[str]) -> tuple[list[BytesIO], bool]:
    """The streams of an Ogg file that follow each other, and whether the last is whole: none if there is only one."""
    with open(path, "rb") as file:
        whole, place, ends, begins, last, open_streams = file.seek(0, 2), 0, True, [0], True, set[bytes]()
        while place + 27 <= whole:
            file.seek(place)
            page = file.read(27)
            if page[:4] != b"OggS":
                break  # garbage behind the sound
            size = 27 + page[26] + sum(file.read(page[26]))
            if page[5] & 2:
                if not open_streams and place:
                    begins.append(place)
                open_streams.add(page[14:18])
            if page[5] & 4:
                open_streams.discard(page[14:18])
            place += size
            last = place <= whole
        ends = last and not open_streams
        if len(begins) == 1:
            return [], ends
        parts = []
        for begin, end in zip(begins, [*begins[1:], whole], strict=True):
            file.seek(begin)
            parts.append(BytesIO(file.read(end - begin)))
        return parts, ends


def _frame(content: bytes, place: int) -> tuple[int, int, int, bytes] | None:
    """Size in bytes, samples, rate in Hz and what all frames of a stream share, of the MPEG frame at `place`."""
    if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] & 0xE0 != 0xE0:
        return None
    second, third = content[place + 1], content[place + 2]
    version, layer, index, rate = second >> 3 & 3, 4 - (second >> 1 & 3), third >> 4, third >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    one = version == 3
    hertz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits = KILOBITS[one, layer][index] * 1000
    samples = 384 if layer == 1 else 1152 if layer == 2 or one else 576
    padding = third >> 1 & 1
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    return size, samples, hertz, bytes([second & 0xFE, third & 0x0C])


def mpeg(path: str | PathLike[str]) -> tuple[list[BytesIO], int, int, int]:
    """An MPEG file's streams, clean and with a true Info header each, none if it is no such file.

    Also samples that are there, samples that are missing, and the sample rate in Hz.
    """
    with open(path, "rb") as file:
        begin = file.read(10)
        if begin[:3] != b"ID3" and not _frame(begin, 0):
            return [], 0, 0, 0
        content = begin + file.read()
    place, kind, rest, rate, samples = 0, None, 0, 0, 0
    runs: list[tuple[int | None, bytes, list[bytes]]] = []  # frames stated, Info frame, frames
    while place + 4 <= len(content):
        if content[place : place + 3] == b"ID3":
            a, b, c, d = content[place + 6 : place + 10].ljust(4, b"\0")
            place += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(content[place + 5] & 16)
            if content[place : place + 4] in (b"fLaC", b"RIFF", b"FORM"):
                return [], 0, 0, 0
            continue
        if content[place : place + 3] == b"TAG" and len(content) - place == 128:
            break
        facts = _frame(content, place)
        after = place + facts[0] if facts else place
        sure = facts and (kind is None or facts[3] == kind)
        if sure and facts and after > len(content):
            rest = facts[1]
            break
        follows = content[after : after + 3] in (b"ID3", b"TAG", b"APE") or after >= len(content) - 3
        if not sure or not facts or not (follows or _frame(content, after) or (runs and facts[3] == kind)):
            mark = MARK.search(content, place + 1)
            if not mark:
                break
            place = mark.start()
            continue
        kind, rate, samples = facts[3], facts[2], facts[1]
        frame = content[place:after]
        found = TAG.search(frame[:60])
        if found and (found[4] or found[2][3] & 1):
            runs.append((int.from_bytes(found[5] or found[3]), b"" if found[4] else frame, []))
        else:
            if not runs or runs[-1][0] is not None and len(runs[-1][2]) >= runs[-1][0] > 0:
                runs.append((None, b"", []))
            runs[-1][2].append(frame)
        place = after
    missing = sum(max(0, (stated or 0) - len(frames)) for stated, _, frames in runs) * samples
    parts = []
    for stated, info, frames in runs:
        if frames:
            content = b"".join(frames)
            right = stated and info or soundfile.info(BytesIO(content)).frames == len(frames) * samples
            parts.append(BytesIO((info if right else _info(frames)) + content))
    return parts, sum(len(frames) for *_, frames in runs) * samples, missing or rest, rate


def _info(frames: list[bytes]) -> bytes:
    """A silent frame that states how many follow; nothing for layers I and II, whose decoder reads none."""
    first = frames[0]
    if first[1] >> 1 & 3 != 1:
        return b""
    one, mono = first[1] >> 3 & 3 == 3, first[3] >> 6 == 3
    side = (17 if mono else 32) if one else (9 if mono else 17)
    for index in range(1, 15):
        header = bytes([0xFF, first[1] | 1, index << 4 | first[2] & 0x0C, first[3]])
        facts = _frame(header, 0)
        if facts and facts[0] >= 4 + side + 16:
            tag = b"Xing" + struct.pack(">III", 3, len(frames), facts[0] + sum(map(len, frames)))
            return (header + bytes(side) + tag).ljust(facts[0], b"\0")
    return b""

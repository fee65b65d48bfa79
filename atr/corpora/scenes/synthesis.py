"""Parametric sound events: each a function of a random generator, a length and a pitch.

Every call draws its own timbre, rhythm and noise, so two barks are two dogs. `pitch` multiplies the frequencies of an
event that has a pitch and is ignored by the others. Levels are arbitrary; the mixer of `scenes` sets them.
"""

from collections.abc import Callable

import numpy as np

from atr.corpora.scenes.waveforms import (
    HOP,
    RATE,
    beats,
    controls,
    decay,
    harmonics,
    hump,
    modes,
    noise,
    place,
    pulses,
    resonate,
    smooth,
    tone,
    upsample,
    wander,
)

# The sounds: (n,) samples of an event that lasts so many seconds, at RATE.


def rain(rng, n, seconds, pitch):
    hiss = noise(rng, n, rng.uniform(500, 1500), rng.uniform(5000, 7500), rng.uniform(-2, 2))
    drops = resonate(pulses(rng, n, rng.uniform(40, 250), 0.9), rng.uniform(2000, 4500), rng.uniform(600, 1500))
    return hiss * upsample(wander(rng, n, 1.5, 0.7, 1.0), n) + drops / drops.std() * rng.uniform(0.5, 1.5)


def wind(rng, n, seconds, pitch):
    gust = wander(rng, n, rng.uniform(0.6, 1.4), 0.15, 1.0)
    howl = tone(rng.uniform(300, 600) * (0.7 + 0.7 * gust), np.array([1.0, 0.15]), rng, n)
    howl *= upsample(wander(rng, n, 30, -1, 1) * gust**2, n) * rng.uniform(0.3, 2.0)
    body = noise(rng, n, 40, rng.uniform(250, 700), rng.uniform(-7, -4))
    air = noise(rng, n, 300, rng.uniform(1000, 2500), -6) * upsample(gust**2, n)
    return body * upsample(gust, n) + 0.5 * howl + rng.uniform(0.2, 0.6) * air


def thunder(rng, n, seconds, pitch):
    t = controls(n)
    rolls = [
        rng.uniform(0.3, 1) * np.exp(-np.maximum(t - s, 0) / rng.uniform(0.3, 0.9)) * np.clip((t - s) / 0.05, 0, 1)
        for s in rng.uniform(0.05, 0.55, 5) * seconds
    ]
    rumble = noise(rng, n, 25, rng.uniform(100, 220), -3) * upsample(sum(rolls) * wander(rng, n, 9, 0.4, 1), n)
    body = noise(rng, n, 80, rng.uniform(400, 900), -5) * decay(n, 0.03, rng.uniform(0.3, 0.8))
    snap = noise(rng, n, 200, 5000, -3) * decay(n, 0.004, rng.uniform(0.05, 0.2))
    crack = snap * upsample(wander(rng, n, 40, 0, 1), n)
    return (rumble + rng.uniform(0.4, 1.0) * body + rng.uniform(0.2, 1.2) * crack) * hump(n, 0.005, 0.3)


def waves(rng, n, seconds, pitch):
    t = controls(n)
    period = rng.uniform(2.5, 4.5)
    phase = (t / period + rng.uniform(0, 0.3) + 0.08 * np.sin(t * rng.uniform(0.3, 0.8))) % 1.0
    rise = rng.uniform(0.3, 0.45)
    swell = np.where(phase < rise, phase / rise, np.exp(-(phase - rise) / (1 - rise) * 2.5)) ** 1.5
    swell *= wander(rng, n, 1 / period, 0.7, 1.0)
    body = noise(rng, n, 80, rng.uniform(500, 900), -4) * upsample(0.12 + swell, n)
    wash = noise(rng, n, 600, rng.uniform(3500, 6500), -3) * upsample(0.03 + np.roll(swell, 12) ** 1.5, n)
    return body + rng.uniform(0.8, 1.8) * wash


def fire(rng, n, seconds, pitch):
    crackle = resonate(pulses(rng, n, rng.uniform(10, 35), 1.3), rng.uniform(2500, 5500), rng.uniform(1500, 3000))
    pops = resonate(pulses(rng, n, rng.uniform(1.5, 5), 0.7), rng.uniform(700, 1600), rng.uniform(300, 700))
    roar = noise(rng, n, 60, rng.uniform(300, 800), -4) * upsample(wander(rng, n, 8, 0.5, 1), n)
    return crackle / crackle.std() + 0.7 * pops / pops.std() + rng.uniform(0.2, 0.45) * roar


def engine(rng, n, seconds, pitch):
    cycle = rng.uniform(24, 30) * pitch * wander(rng, n, 1.0, 0.93, 1.07)  # one harmonic a cylinder and turn
    amplitudes = harmonics(rng, 90, 0.75, 0.7)
    amplitudes[int(rng.integers(1, 4)) :: int(rng.integers(2, 5))] *= 3
    wave = tone(cycle, amplitudes, rng, n)
    wave = wave / wave.std()
    hiss = noise(rng, n, 150, rng.uniform(1000, 4000), -3) * np.abs(wave)
    return resonate(wave, rng.uniform(110, 220) * pitch, 200) * 2 + 0.7 * wave + rng.uniform(0.3, 0.8) * hiss


def helicopter(rng, n, seconds, pitch):
    rate = rng.uniform(10, 17)
    slap = tone(rate * wander(rng, n, 0.5, 0.98, 1.02), np.exp(-np.arange(12) / 6.0), rng, n)
    slap = np.maximum(slap / slap.std(), 0) ** 1.5
    chop = noise(rng, n, 60, rng.uniform(400, 1200), -3) * slap
    air = noise(rng, n, 300, 4000, -3) * (0.3 + 0.4 * slap)
    whine = tone(rng.uniform(700, 2200) * wander(rng, n, 0.5, 0.99, 1.01), harmonics(rng, 3, 1), rng, n)
    distance = upsample(wander(rng, n, 0.3, 0.6, 1), n)
    return (chop + rng.uniform(0.2, 0.6) * air + rng.uniform(0, 0.12) * whine) * distance


def siren(rng, n, seconds, pitch):
    t = controls(n)
    low, high = rng.uniform(420, 520) * pitch, rng.uniform(950, 1200) * pitch
    style = rng.integers(3)
    if style == 0:  # wail
        sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (t / rng.uniform(2.0, 4.0) + rng.uniform()))
    elif style == 1:  # yelp
        sweep = (t / rng.uniform(0.25, 0.45) + rng.uniform()) % 1.0
    else:  # two tones
        sweep = np.where((t / rng.uniform(0.8, 1.4) + rng.uniform()) % 1.0 < 0.5, 0.05, 0.55)
    wave = tone(low * (high / low) ** sweep, harmonics(rng, 8, rng.uniform(1, 1.8)), rng, n)
    return resonate(wave, rng.uniform(800, 1800), 900) * 2 + 0.4 * wave


def alarm(rng, n, seconds, pitch):
    frequency = rng.uniform(1700, 2200) * pitch
    amplitudes = np.where(np.arange(4) % 2 == 0, harmonics(rng, 4, 1), 0.05)
    period, share = rng.uniform(0.18, 0.5), rng.uniform(0.4, 0.6)
    group = int(rng.integers(1, 5))  # beeps between rests
    beat = np.arange(n) / RATE / period
    on = (beat % 1.0 < share) & (beat % (group + 1) < group if group > 1 else True)
    gate = smooth(on)
    return tone(frequency, amplitudes, rng, n) * gate


def telephone(rng, n, seconds, pitch):
    rate = rng.uniform(16, 24)
    first = rng.uniform(900, 1300) * pitch
    second = first * rng.uniform(1.15, 1.35)
    if rng.uniform() < 0.5:  # two metal cups and a hammer
        ratios, falls = np.array([1, 2.7, 4.1]), rng.uniform(0.04, 0.12, 3)
        cups = [modes(f * ratios, falls, rng.uniform(0.3, 1, 3), 4000) for f in (first, second)]
        wave = place(n, beats(rng, seconds, 1 / rate, 0.03), lambda k: cups[k % 2])
    else:  # electronic warble
        swap = np.where((controls(n) * rate / 2) % 1.0 < 0.5, first, second)
        wave = tone(swap, harmonics(rng, 5, 1.2), rng, n)
    return wave * hump(n, 0.01, 0.12)


def bell(rng, n, seconds, pitch):
    base = rng.uniform(380, 480) * pitch
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.6, 3.0, 4.1, 5.4]) * (1 + rng.normal(0, 0.01, 9))
    falls = rng.uniform(0.7, 1.4) / ratios**0.7
    strike = noise(rng, n, 1500, 7000) * decay(n, 0.001, 0.01)
    return modes(base * ratios, falls, harmonics(rng, 9, 0.5, 0.6), n) + rng.uniform(0.1, 0.5) * strike


def clock(rng, n, seconds, pitch):
    frequencies = rng.uniform(1500, 5500, 4)
    ratio = rng.uniform(0.75, 0.95)

    def click(scale):
        wave = modes(frequencies * scale, rng.uniform(0.002, 0.007, 4), rng.uniform(0.3, 1, 4), 900)
        return wave + 0.4 * np.roll(wave, int(rng.uniform(100, 300)))

    pair = [click(1.0), rng.uniform(0.5, 1.0) * click(ratio)]
    return place(n, beats(rng, seconds, rng.uniform(0.2, 0.5), 0.005), lambda k: pair[k % 2])


def footsteps(rng, n, seconds, pitch):
    hard, low, high = rng.uniform(0.0, 1.0), rng.uniform(70, 130), rng.uniform(1500, 4500)

    def step(k):
        thump = modes(low * rng.uniform(0.9, 1.1, 2) * [1, 2.3], np.array([0.03, 0.015]), np.array([1, 0.5]), 3000)
        heel = noise(rng, 3000, 300, high, -3) * decay(3000, 0.001, 0.008 + 0.01 * (1 - hard))
        scuff = noise(rng, 3000, 800, high * 1.5, -2) * decay(3000, 0.05, 0.03 + 0.03 * (1 - hard))
        return rng.uniform(0.7, 1) * (1.2 * thump + hard * heel + (0.5 * (1 - hard) + 0.05) * scuff)

    return place(n, beats(rng, seconds, rng.uniform(0.4, 0.7), 0.06), step)


def knocking(rng, n, seconds, pitch):
    frequencies = rng.uniform(130, 220) * np.array([1, 1.8, 2.9, 4.4]) * rng.uniform(0.9, 1.1, 4)
    wood = modes(frequencies, rng.uniform(0.015, 0.05, 4), rng.uniform(0.3, 1, 4), n)
    return wood + rng.uniform(0.2, 0.5) * noise(rng, n, 500, 3500, -3) * decay(n, 0.001, 0.006)


def clapping(rng, n, seconds, pitch):
    wave = np.zeros(n, np.float32)
    for _ in range(int(rng.integers(3, 8))):
        hands, width = rng.uniform(900, 2000), rng.uniform(500, 1200)
        grains = [resonate(noise(rng, 1200, 400, 6000), hands, width) * decay(1200, 0.001, 0.012) for _ in range(4)]
        times = beats(rng, seconds, rng.uniform(0.2, 0.42), 0.08)
        times[1:] -= rng.uniform(0, 0.15)
        grain_level = rng.uniform(0.5, 1.0)
        wave += grain_level * place(n, times, lambda k, grains=grains: grains[int(rng.integers(4))])
    return wave


def bark(rng, n, seconds, pitch):
    x = np.linspace(0, 1, n // HOP + 2)
    contour = rng.uniform(330, 420) * pitch * (0.75 + 0.5 * np.sin(np.pi * x ** rng.uniform(0.5, 0.9)))
    contour *= 1 + rng.normal(0, 0.03, len(x))  # roughness
    voice = tone(contour, harmonics(rng, 30, 0.6, 0.3), rng, n)
    voice = voice / voice.std() + rng.uniform(0.3, 0.8) * noise(rng, n, 300, 5000)
    mouth = rng.uniform(0.85, 1.15) * pitch**0.4
    wave = resonate(voice, 750 * mouth, 250) + 0.7 * resonate(voice, 1500 * mouth, 400) + 0.08 * voice
    return wave * hump(n, rng.uniform(0.08, 0.2), rng.uniform(0.4, 0.7))


def birdsong(rng, n, seconds, pitch):
    base = rng.uniform(2800, 3600) * pitch

    def syllable():
        size = int(rng.uniform(0.05, 0.2) * RATE)
        x = np.linspace(0, 1, size // HOP + 2)
        sweep = 1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.2, 0.2) * np.sin(np.pi * x)
        sweep = sweep + rng.choice([0, 0.06]) * np.sin(2 * np.pi * rng.uniform(3, 8) * x)
        return tone(base * rng.uniform(0.85, 1.3) * sweep, np.array([1, 0.1]), rng, size) * hump(size, 0.2, 0.4)

    songs = [syllable() for _ in range(int(rng.integers(2, 6)))]
    order, times, time = [], [], 0.0
    while time < seconds - 0.1:
        kind = int(rng.integers(len(songs)))
        for _ in range(int(rng.integers(1, 6))):
            order.append(kind)
            times.append(time)
            time += len(songs[kind]) / RATE + rng.uniform(0.02, 0.06)
        time += rng.uniform(0.1, 0.6)
    return place(n, np.array(times)[np.array(times) < seconds], lambda k: rng.uniform(0.6, 1) * songs[order[k]])


def crickets(rng, n, seconds, pitch):
    wave = np.zeros(n, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        t = np.arange(n, dtype=np.float32) / RATE
        chirp, pulse = rng.uniform(1.5, 3.5), rng.uniform(28, 45)
        open_ = ((t * chirp + rng.uniform()) % 1.0) < rng.uniform(0.3, 0.55)
        gate = np.maximum(np.sin(2 * np.pi * pulse * t), 0) * open_
        gate = smooth(gate)  # no clicks
        carrier = tone(rng.uniform(4000, 5200) * wander(rng, n, 2, 0.995, 1.005), np.array([1.0]), rng, n)
        wave += rng.uniform(0.4, 1) * gate * carrier
    return wave


def frog(rng, n, seconds, pitch):
    x = np.linspace(0, 1, n // HOP + 2)
    rate = rng.uniform(38, 65) * (1 + rng.uniform(-0.2, 0.3) * x)
    buzz = tone(rate, np.ones(100), rng, n) ** 3
    buzz = buzz / buzz.std() + 0.1 * noise(rng, n, 200, 4000)
    throat = rng.uniform(480, 620) * pitch
    wave = resonate(buzz, throat, 120) + rng.uniform(0.3, 0.8) * resonate(buzz, throat * rng.uniform(2.2, 2.8), 250)
    return wave * hump(n, rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.3))


def bees(rng, n, seconds, pitch):
    wave = np.zeros(n, np.float32)
    for _ in range(int(rng.integers(3, 6))):
        wing = rng.uniform(170, 260) * wander(rng, n, rng.uniform(1, 5), 0.9, 1.1)
        wave += tone(wing, harmonics(rng, 20, rng.uniform(0.7, 1.3)), rng, n) * upsample(wander(rng, n, 2, 0.1, 1), n)
    return wave


def whistle(rng, n, seconds, pitch):
    x = np.linspace(0, 1, n // HOP + 2)
    t = np.arange(n, dtype=np.float32) / RATE
    frequency = rng.uniform(2100, 2500) * pitch * (1 + rng.uniform(-0.03, 0.05) * x)
    trill = 1 - rng.uniform(0, 0.45) * (1 + np.sin(2 * np.pi * rng.uniform(20, 40) * t))  # the pea, if there is one
    wave = tone(frequency, np.array([1, 0.15, 0.08]), rng, n) * trill
    return (wave + rng.uniform(0.05, 0.25) * noise(rng, n, 1500, 5000)) * hump(n, 0.06, 0.1)


def dripping(rng, n, seconds, pitch):
    base = rng.uniform(600, 1400)

    def drop(k):
        size = 2000
        rise = base * rng.uniform(0.8, 1.3) * np.linspace(1, rng.uniform(1.3, 2.2), size // HOP + 2)
        splash = 0.3 * noise(rng, size, 1500, 6000) * decay(size, 0.001, 0.003)
        ring = tone(rise, np.array([1, 0.1]), rng, size) * decay(size, 0.002, rng.uniform(0.012, 0.03))
        return rng.uniform(0.6, 1) * (ring + splash)

    return place(n, beats(rng, seconds, rng.uniform(0.3, 0.8), 0.25), drop)


def saw(rng, n, seconds, pitch):
    stroke = controls(n) * rng.uniform(1.2, 2.2)  # strokes back and forth
    speed = np.abs(np.sin(np.pi * stroke)) ** 0.7
    forth = np.floor(stroke) % 2 == 0
    teeth = tone(30 + rng.uniform(90, 160) * speed, harmonics(rng, 10, 0.5), rng, n)
    rasp = noise(rng, n, rng.uniform(500, 1000), rng.uniform(3500, 6500)) * (1 + 0.5 * teeth / teeth.std())
    body = resonate(rasp, rng.uniform(900, 1800), 300)
    level = upsample(speed * np.where(forth, 1.0, rng.uniform(0.4, 0.8)), n)
    return (0.5 * rasp + 1.5 * body) * level


def horn(rng, n, seconds, pitch):
    base = rng.uniform(330, 400) * pitch
    amplitudes = harmonics(rng, 24, rng.uniform(0.5, 1.0), 0.4)
    wave = tone(base, amplitudes, rng, n) + tone(base * rng.uniform(1.18, 1.28), amplitudes, rng, n)
    return (resonate(wave, rng.uniform(900, 2200), 900) * 2 + 0.4 * wave) * hump(n, 0.04, 0.08)


# (rng, samples, seconds, pitch) → (samples,); see `synthesise`.
Synthesiser = Callable[[np.random.Generator, int, float, float], np.ndarray]
SOUNDS: tuple[Synthesiser, ...] = (
    rain, wind, thunder, waves, fire, engine, helicopter, siren, alarm, telephone, bell, clock, footsteps, knocking,
    clapping, bark, birdsong, crickets, frog, bees, whistle, dripping, saw, horn,
)  # fmt: skip
SYNTHESISERS: dict[str, Synthesiser] = {sound.__name__: sound for sound in SOUNDS}


def synthesise(event: str, rng: np.random.Generator, seconds: float, pitch: float = 1.0) -> np.ndarray:
    """A sound of so many seconds, (samples,) at RATE. KeyError: an event that is none of SYNTHESISERS."""
    return SYNTHESISERS[event](rng, int(seconds * RATE), seconds, pitch)

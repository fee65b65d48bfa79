"""Sizes and times in words."""


def seconds(value: float) -> str:
    """ "12 ms", "3.4 s", "33.5 min", "2.1 h"."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 3600 else f"{value / 3600:.3g} h"


def human(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def gigabytes(size: float) -> str:
    """ "0.4 GB", "53 GB"."""
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"


def duration(seconds: float) -> str:
    """ "40 seconds", "12 minutes", "3.5 hours", "12 days", rounded as an estimate deserves."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 3 * 86400 else f"{seconds / 86400:.0f} days"


def count_of(number: int, what: str) -> str:
    """ "1 file", "2,000 files"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def clock(seconds: float) -> str:
    """ "0:05", "1:02:03", as players show it."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

"""Subtitles of words with time stamps: SubRip (.srt) and WebVTT (W3C, https://www.w3.org/TR/webvtt1/).

A cue is one line.  A word begins a new one if
  - it begins ``PAUSE`` seconds or more after the word before has ended,
  - the line would have more than ``WIDTH`` characters with it, or
  - the cue would last more than ``LONGEST`` seconds with it.
So a cue of one word may be longer.  A cue stays for ``SHORTEST`` seconds at least, if no other begins before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

PAUSE, LONGEST, SHORTEST = 0.8, 7.0, 1.0  # seconds
WIDTH = 42  # characters, a line's usual limit


class Cue(NamedTuple):
    """A line and when it is shown, in seconds."""

    start: float
    end: float
    text: str


def cues(words: Sequence[dict[str, Any]]) -> list[Cue]:
    """The cues of {"text", "timestamp": (start, end)}, one for each word, in their order."""
    groups: list[Cue] = []
    for word in words:
        text, (start, end) = " ".join(word["text"].split()), word["timestamp"]
        last = groups[-1] if groups else None
        if not text:  # a line without letters would end the cue
            continue
        if (
            last is None
            or start - last.end >= PAUSE
            or len(last.text) + 1 + len(text) > WIDTH
            or end - last.start > LONGEST
        ):
            groups.append(Cue(start, end, text))
        else:
            groups[-1] = Cue(last.start, end, f"{last.text} {text}")
    following = [*(cue.start for cue in groups[1:]), float("inf")]
    return [
        cue._replace(end=max(cue.end, min(cue.start + SHORTEST, limit)))
        for cue, limit in zip(groups, following, strict=False)  # without a cue there is none that follows
    ]


def srt(words: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of a .srt file.  SubRip has no escapes; only its arrow is kept out of the text."""
    for number, cue in enumerate(cues(words), 1):
        yield from (str(number), f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}")
        yield from (cue.text.replace("-->", "->"), "")


def vtt(words: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of a .vtt file."""
    yield from ("WEBVTT", "")
    for cue in cues(words):
        yield f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}"
        yield from (cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"), "")


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss and milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"

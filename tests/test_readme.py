"""What the README shows is what happens: its console sessions and its Python are run, in a new folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v_ref.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d+")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def session(block: str) -> list[tuple[str, str]]:
    """(command, output) of each ``$ command`` in a block."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def assert_same(shown: str, printed: str) -> None:
    """The same text; numbers with a point may differ in the last place, as processors round differently."""
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", printed)
    for a, b in zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True):
        assert float(a) == pytest.approx(float(b), abs=2e-4)


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = shlex.split(command)
    assert words[0] == "d2v-ref"
    with pytest.raises(SystemExit):
        main(words[1:])
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_console_sessions_and_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, pitch in (("alice.wav", 210), ("bob.flac", 120)):  # what a reader would have
        seconds = np.arange(3 * 22050) / 22050
        soundfile.write(name, 0.1 * sum(np.sin(2 * np.pi * pitch * k * seconds) / k for k in range(1, 20)), 22050)
    y, x = np.mgrid[0:120, 0:160]
    Image.fromarray(np.stack((x, y, x ^ y), axis=-1).astype(np.uint8)).save("photo.png")
    commands = [pair for block in blocks("console") for pair in session(block)]
    assert len(commands) >= 13
    for command, shown in commands:
        assert_same(shown, run(command, capsys))
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    assert "answers" in names


def test_the_first_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the package in it; that the environment can be made is for .ci/run to show."""
    monkeypatch.chdir(tmp_path)
    line = README.split("<!-- the first command -->")[1].split("```")[1].removeprefix("sh\n").strip()
    commands = [part.removeprefix(".venv/bin/") for part in line.split(" && ") if "d2v-ref" in part]
    assert len(commands) == 2
    assert run(commands[0], capsys).startswith("demo: Data2VecTextForMaskedLM")
    assert len(run(commands[1], capsys).splitlines()) == 5


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (Path(__file__).parents[1] / target).exists(), target

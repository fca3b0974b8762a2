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

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(autouse=True)
def _kernels_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that compiles on first use says so on standard error, once on a machine."""
    monkeypatch.setenv("D2V_QUIET", "1")


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
    (tmp_path / "d2v_ref").symlink_to(ROOT / "d2v_ref", target_is_directory=True)  # a reader is in a clone
    for name, pitch in (("alice.wav", 210), ("bob.flac", 120)):  # and has these
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


def test_the_first_command_and_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the package in it; that the environment can be made is for .ci/run to show."""
    monkeypatch.chdir(tmp_path)
    line = README.split("<!-- the first command -->")[1].split("```")[1].removeprefix("sh\n").strip()
    commands = [part.removeprefix(".venv/bin/") for part in line.split(" && ") if "d2v-ref" in part]
    shown = README.split("<!-- its output -->")[1].split("```")[1].removeprefix("text\n")
    seconds = re.compile(r"\b\d+ s$", re.MULTILINE)
    assert len(commands) == 1
    assert len(seconds.findall(shown)) == 1
    # The command installs no backend beside NumPy's, and the tests may have some.
    printed = re.sub(r"^  (?!numpy:)\w+: \d+ of \d+ arrays passed\n", "", run(commands[0], capsys), flags=re.MULTILINE)
    assert_same(seconds.sub("# s", shown), seconds.sub("# s", printed))


def test_excerpts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of their lines is printed, in this order; what is measured differs a little among machines."""

    def masked(line: str) -> str:
        words = line.split()
        return NUMBER.sub("#", line.replace(words[1], "#", 1) if words[:1] == ["activations"] else line)

    monkeypatch.chdir(ROOT)
    excerpts = README.split("<!-- an excerpt -->")[1:]
    assert len(excerpts) == 2
    for part in excerpts:
        command, *shown = part.split("```")[1].removeprefix("text\n").splitlines()
        printed = iter([masked(line) for line in run(command.removeprefix("$ "), capsys).splitlines()])
        for line in shown:
            assert line == "..." or masked(line) in printed, line


def test_every_command_is_run() -> None:
    """Shell blocks hold the command to install and try it, and the one to test it; all others are sessions."""
    assert len(blocks("sh")) == 2
    assert README.count("<!-- the test command -->") == README.count("<!-- the first command -->") == 1


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target

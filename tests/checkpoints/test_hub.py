from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import errors

from d2v_ref.checkpoints import resolve, write_json, write_safetensors
from d2v_ref.errors import CheckpointError, UnavailableError

ID = "facebook/data2vec-text-base"
SHA, OLD = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub lays it out: a main with weights, and a tag whose weights were not downloaded."""
    repo = tmp_path / "cache" / "models--facebook--data2vec-text-base"
    for commit, ref in ((SHA, "main"), (OLD, "v1")):
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {})
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    write_safetensors(repo / "snapshots" / SHA / "model.safetensors", {"w": np.ones(1)})
    return tmp_path / "cache"


def snapshot(cache: Path, commit: str) -> Path:
    return cache / "models--facebook--data2vec-text-base" / "snapshots" / commit


def test_a_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "facebook" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("facebook/model") == Path("facebook/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/facebook") == tmp_path / "facebook"


@pytest.mark.parametrize("name", ["./nothing", "~/nothing/x", "/nothing", "..x", Path("org/name"), "~nobody-here/x"])
def test_a_path_that_is_no_folder(name: str | Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no such folder|no usable path"):
        resolve(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "", "x" * 300, "x" * 5000, "a--b", "a\0b", "org/", "name.git"])
def test_an_id_that_is_none(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder nor|no usable path") as caught:
        resolve(name, local_files_only=True)
    assert not isinstance(caught.value, UnavailableError)


def test_the_cache(cache: Path) -> None:
    assert resolve(ID, cache_dir=cache, local_files_only=True) == snapshot(cache, SHA)
    assert resolve(ID, cache_dir=cache, local_files_only=True, revision=SHA) == snapshot(cache, SHA)
    assert resolve(ID, cache_dir=cache, local_files_only=True, revision="v1", weights=False) == snapshot(cache, OLD)


def test_what_the_cache_lacks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve(ID, cache_dir=cache) == snapshot(cache, SHA)
    for name, options in ((ID, {"revision": "v2"}), ("facebook/other", {}), ("other", {"weights": False})):
        with pytest.raises(UnavailableError, match="is not in the cache") as caught:
            resolve(name, cache_dir=cache, **options)
        text = str(caught.value)
        assert text.startswith(f"{name} (revision {options.get('revision', 'main')})")
        assert "unset HF_HUB_OFFLINE" in text
    with pytest.raises(UnavailableError, match=r"without usable weights: .*the folder holds no weights"):
        resolve(ID, cache_dir=cache, revision="v1")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


def test_the_environment_variable(cache: Path) -> None:
    code = f"from d2v_ref.checkpoints import resolve; print(resolve({ID!r}))"
    assert run(code, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache)) == str(snapshot(cache, SHA))


def test_a_hub_that_can_not_be_reached(cache: Path) -> None:
    """A port of this machine on which nothing listens: the cache serves, and what it lacks is an error."""
    code = f"""
from d2v_ref.checkpoints import resolve
print(resolve({ID!r}))
try: resolve("facebook/other")
except Exception as error: print(type(error).__name__, error)
"""
    lines = run(code, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="0").splitlines()
    assert lines[0] == str(snapshot(cache, SHA))
    assert lines[1].startswith(
        "UnavailableError facebook/other (revision main) is not in the cache, and the download failed"
    )


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: what is in a repository, and its files."""

    files: ClassVar[dict[str, bytes]]
    sent: ClassVar[set[str]]

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        file = path.rpartition(f"/resolve/{SHA}/")[2]
        if path == f"/api/models/{ID}" or path.startswith(f"/api/models/{ID}/revision/"):
            data = json.dumps({"id": ID, "sha": SHA, "siblings": [{"rfilename": name} for name in self.files]}).encode()
        elif path == f"/api/models/{ID}/tree/{SHA}":
            sizes = [
                {"type": "file", "path": name, "size": len(data), "oid": name} for name, data in self.files.items()
            ]
            data = json.dumps(sizes).encode()
        elif path.startswith(f"/{ID}/resolve/") and file.rpartition("/")[2] in self.files:
            data = self.files[file.rpartition("/")[2]]
            self.sent.add(file.rpartition("/")[2])
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files = {
        name: name.encode() for name in ("config.json", "vocab.json", "README.md", "tf_model.h5", "pytorch_model.bin")
    }
    Hub.sent = set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    url = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_set_of_weights_is_downloaded(hub: type[Hub], tmp_path: Path) -> None:
    folder = resolve(ID, cache_dir=tmp_path)
    assert folder.name == SHA
    assert held(folder) == {"config.json", "pytorch_model.bin", "vocab.json"}
    assert (folder / "vocab.json").read_bytes() == b"vocab.json"
    hub.sent.clear()
    assert resolve(ID, cache_dir=tmp_path, local_files_only=True) == folder
    assert not hub.sent


def test_a_sharded_index_is_honoured(hub: type[Hub], tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    shards = {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}
    hub.files |= {name: name.encode() for name in ("a.safetensors", "b.safetensors", "c.safetensors")}
    hub.files[index] = json.dumps({"weight_map": shards}).encode()
    folder = resolve(ID, cache_dir=tmp_path, revision="main")
    assert held(folder) == {"a.safetensors", "b.safetensors", "config.json", index, "vocab.json"}


def test_without_weights(hub: type[Hub], tmp_path: Path) -> None:
    assert held(resolve(ID, cache_dir=tmp_path, weights=False)) == {"config.json", "vocab.json"}
    with pytest.raises(UnavailableError, match="without usable weights"):
        resolve(ID, cache_dir=tmp_path, local_files_only=True)


def held(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_repository_with_weights_of_tensorflow_only(hub: type[Hub], tmp_path: Path) -> None:
    del hub.files["pytorch_model.bin"]
    assert held(resolve(ID, cache_dir=tmp_path)) == {"config.json", "tf_model.h5", "vocab.json"}


def test_a_repository_without_weights(hub: type[Hub], tmp_path: Path) -> None:
    hub.files["flax_model.msgpack"] = hub.files.pop("pytorch_model.bin")
    del hub.files["tf_model.h5"]
    with pytest.raises(CheckpointError, match=r"no weights that can be read here \(got .*flax_model.msgpack"):
        resolve(ID, cache_dir=tmp_path)


def raising(error: type[Exception]) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise (
            error("first line\nsecond", response=response)
            if issubclass(error, errors.HfHubHTTPError)
            else error("first line")
        )

    return call


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "is gated"),
        (errors.RepositoryNotFoundError, "is not on the hub, or is private"),
        (errors.RevisionNotFoundError, "has no such revision"),
        (errors.HfHubHTTPError, r"is not in the cache, and the download failed \(first line\)"),
        (errors.HTTPError, r"is not in the cache, and the download failed \(first line\)"),
        (ConnectionError, r"is not in the cache, and the download failed \(first line\)"),
    ],
)
def test_errors_of_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: SimpleNamespace(model_info=raising(error)))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(errors.LocalEntryNotFoundError))
    with pytest.raises(UnavailableError, match=message) as caught:
        resolve(ID, cache_dir=cache, revision="v1")
    assert "(revision v1)" in str(caught.value)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match="pip install huggingface_hub"):
        resolve(ID)

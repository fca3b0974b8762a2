"""From a folder, a shipped model's name or a Hugging Face id to a folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from d2v_ref import models
from d2v_ref.checkpoints.files import WEIGHT_NAMES, read_index, weight_files
from d2v_ref.errors import CheckpointError, UnavailableError

SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

TIMEOUT = 10.0  # seconds, as huggingface_hub waits for a file's metadata


def resolve(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    weights: bool = True,
) -> Path:
    """The folder that holds a checkpoint: the one given, a shipped one's, or a hub id's, downloaded if needed.

    A folder is returned as it is, and so is that of a checkpoint that comes with the package (``tiny-text``; see
    ``d2v_ref.models``); huggingface_hub is not even imported.  Of an id (``facebook/data2vec-text-base``)
    one set of weights is downloaded, the first of ``WEIGHT_NAMES`` that there is; with ``weights=False`` none.  Nothing
    is downloaded with ``local_files_only`` or if HF_HUB_OFFLINE is set, and what is in the cache serves when the hub
    can't be reached.
    """
    folder = _folder(name_or_path)
    if folder is not None:
        return folder
    name = str(name_or_path)
    if "/" not in name and name.lower().startswith("tiny"):  # or a typing error, and no reason to ask the network
        shipped = models.folder(name)
        if revision is not None:
            message, hint = "comes with d2v_ref and has no revisions", "Leave the revision out"
            raise CheckpointError(f"{name} {message}", got=revision, hint=hint)
        return shipped
    hub = _import_hub()
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a Hugging Face id", got=str(error), expected="owner/name"
        ) from None
    where = {"revision": revision, "cache_dir": cache_dir, "token": token}
    if local_files_only or hub.constants.HF_HUB_OFFLINE:
        return _cached(hub, name, where, weights, "nothing may be downloaded (local_files_only or HF_HUB_OFFLINE)")
    try:
        return _download(hub, name, where, weights)
    except hub.errors.GatedRepoError:
        hint = "Accept its conditions on huggingface.co, and pass a token."
        raise _unavailable(name, revision, "is gated", hint) from None
    except hub.errors.RepositoryNotFoundError:
        hint = "Check the id, pass a token, or pass a folder."
        raise _unavailable(name, revision, "is not on the hub, or is private", hint) from None
    except hub.errors.RevisionNotFoundError:
        raise _unavailable(name, revision, "has no such revision on the hub", "Check the revision.") from None
    # HTTPError is that of the HTTP library that huggingface_hub uses, which is not the same in all its versions.
    except (hub.errors.HTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return _cached(hub, name, where, weights, f"the download failed ({reason})")


def _folder(name_or_path: str | Path) -> Path | None:
    """The path if it is a folder, None if it may be a hub id, an error if it can be neither."""
    try:
        path = Path(name_or_path).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, the home of a user who isn't there, a NUL
        raise CheckpointError(f"{str(name_or_path)[:100]!r} is no usable path", got=str(error)) from None
    if name_or_path == "":  # which pathlib takes for the current folder
        return None
    if is_folder:
        return path
    if exists:
        raise CheckpointError("is a file", path=path, expected="the folder that it is in, or a Hugging Face id")
    if isinstance(name_or_path, Path) or name_or_path.startswith((".", "~", os.sep)):
        raise CheckpointError("there is no such folder", path=path, expected="a folder, or an id (owner/name)")
    return None


def _import_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UnavailableError(
            "finding a checkpoint by its id needs huggingface_hub, which is not installed",
            hint="Run `pip install huggingface_hub`, or pass a folder.",
        ) from None
    return huggingface_hub


def _download(hub: ModuleType, name: str, where: dict[str, Any], weights: bool) -> Path:
    # model_info, as list_repo_files tries for half a minute where there is no network.
    about = hub.HfApi(token=where["token"]).model_info(name, revision=where["revision"], timeout=TIMEOUT)
    there = [file.rfilename for file in about.siblings]
    wanted = [file for file in SMALL_FILES if file in there]
    if weights:
        wanted += _weights(hub, name, where, there)
    folder = Path(hub.snapshot_download(name, allow_patterns=wanted, **where))
    if weights:
        weight_files(folder)
    return folder


def _weights(hub: ModuleType, name: str, where: dict[str, Any], there: Sequence[str]) -> list[str]:
    """The files of the first set of weights: one, or an index and the shards that it names."""
    first = next((file for file in WEIGHT_NAMES if file in there), None)
    if first is None:
        held, expected = ", ".join(there[:20]), " or ".join(WEIGHT_NAMES)
        raise CheckpointError(f"{name} has no weights that can be read here", got=held, expected=expected)
    if not first.endswith(".json"):
        return [first]
    return [first, *sorted(set(read_index(Path(hub.hf_hub_download(name, first, **where))).values()))]


def _cached(hub: ModuleType, name: str, where: dict[str, Any], weights: bool, reason: str) -> Path:
    """The snapshot in the cache.  It has to have what no checkpoint can do without: a configuration and weights."""
    revision = where["revision"]
    hint = "Allow the download (unset HF_HUB_OFFLINE, no local_files_only), or pass a folder that holds the checkpoint."
    try:
        config = hub.hf_hub_download(name, "config.json", local_files_only=True, **where)
    except OSError:
        raise _unavailable(name, revision, f"is not in the cache, and {reason}", hint) from None
    folder = Path(config).parent
    if weights:
        try:
            weight_files(folder)
        except CheckpointError as error:
            message = f"is in the cache without usable weights: {error}; and {reason}"
            raise _unavailable(name, revision, message, hint) from None
    return folder


def _unavailable(name: str, revision: str | None, message: str, hint: str) -> UnavailableError:
    return UnavailableError(f"{name} (revision {revision or 'main'}) {message}", hint=hint)

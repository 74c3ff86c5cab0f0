"""The files of weights: where they are, fetched on first use, and what they were then.

Fetched weights lie in FiftyOne's model zoo directory, converted to safetensors, with a record of their SHA-256. Takes
entries of the registry in checkpoints.py, and knows no model by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from . import fetching
from .checkpoint_files import (
    EXACT,
    MADE_FROM,
    CheckpointError,
    config_for,
    file_sha256,
    metadata_of,
    read,
    twin_path,
    write,
)
from .network import HigherHRNet, NetworkConfig

if TYPE_CHECKING:
    from .checkpoints import ModelEntry

PLUGIN = "@pose-heatmaps/higherhrnet"
MIRRORS = "POSE_HEATMAPS_MIRRORS"  # environment variable: addresses of folders, separated by spaces


@dataclass(frozen=True)
class Weights:
    """A file of weights that is ready to be read.

    Attributes:
        path: of the file
        sha256: what tells these weights from others: of the file, or of the one that it was made from unchanged
    """

    path: Path
    sha256: str


def find(entry: ModelEntry, checkpoint: str | Path | None = None) -> Weights | None:
    """The file of a model's weights, verified; None if it is not here yet, but :func:`fetch` can fetch it.

    Raises:
        CheckpointError: if it is not there, or is not what it was; the message says what to do
    """
    if checkpoint:
        return _of_checkpoint(Path(checkpoint).expanduser())
    if entry.bundled:
        return Weights(entry.asset, _verify(entry.asset, entry.sha256))
    if not entry.source:
        raise CheckpointError(f"The model '{entry.name}' is what your file holds: give its path as 'checkpoint'.")
    installed = installed_path(entry)
    if installed.is_file():
        return _installed(entry, installed)
    if not (installed.with_name(entry.file).is_file() or _addresses(entry)):
        raise CheckpointError(
            f"Only a person can fetch the weights of '{entry.name}': open {entry.source}, download the file of this "
            f"model, and save it as {installed.with_name(entry.file)}, or give its path as 'checkpoint'."
        )
    return None


def fetch_size(entry: ModelEntry, checkpoint: str | Path | None = None) -> int:
    """About how many bytes have to be fetched before the model can be used; 0 if it is here.

    Raises:
        CheckpointError: as :func:`find`
    """
    if find(entry, checkpoint) or installed_path(entry).with_name(entry.file).is_file():
        return 0
    return 4 * count_parameters(entry.network or NetworkConfig())


@lru_cache
def count_parameters(config: NetworkConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in HigherHRNet(config).parameters())


def fetch(entry: ModelEntry) -> Weights:
    """Fetch a model's weights if they are not here, with a progress bar. See :func:`fetch_steps`."""
    with tqdm(desc=f"Fetching the weights of {entry.name}", unit="B", unit_scale=True, delay=0.5) as bar:
        for received in fetch_steps(entry):
            bar.total = received.total
            bar.update(received.count - bar.n)
    weights = find(entry)
    assert weights is not None
    return weights


def fetch_steps(entry: ModelEntry) -> Iterator[fetching.Received]:
    """Fetch a model's weights into FiftyOne's model zoo directory, step by step; nothing if they are there.

    Processes that ask at once fetch once. A file that was put there by hand is used instead. What is kept is a
    safetensors file with the same values, and a record of its SHA-256 and of the published file's.

    Yields:
        how far it is

    Raises:
        CheckpointError: if the weights cannot be had; the message says what to do
    """
    if find(entry):
        return
    installed = installed_path(entry)
    original = installed.with_name(entry.file)
    try:
        installed.parent.mkdir(parents=True, exist_ok=True)
        with fetching.lock(installed) as waiting:
            for _ in waiting:
                yield fetching.Received()
            if installed.is_file():
                return
            by_hand = original.is_file()
            if not by_hand:
                yield from fetching.fetch(
                    _addresses(entry), original, entry.sha256, lambda path: install(entry, path, None)
                )
            install(entry, original, installed)
            if not by_hand:
                original.unlink()
    except fetching.FetchError as error:
        raise CheckpointError(
            f"The weights of '{entry.name}' could not be fetched. {error} Try again. Without a network, put the file "
            f"{entry.file} from {entry.source} into {original.parent}; or name a mirror in {MIRRORS}."
        ) from error
    except OSError as error:
        raise CheckpointError(f"The weights of '{entry.name}' cannot be kept in {original.parent}: {error}.") from error


def weights_dir() -> Path:
    """Where fetched weights lie: the folder that FiftyOne's model zoo has for this plugin's models."""
    import fiftyone as fo

    return Path(fo.config.model_zoo_dir) / "pose-heatmaps"


def installed_path(entry: ModelEntry) -> Path:
    return weights_dir() / f"{entry.name}.safetensors"


def _addresses(entry: ModelEntry) -> list[str]:
    """Where a model's file can be fetched from, mirrors first."""
    import fiftyone as fo

    mirrors = os.environ.get(MIRRORS, "").split()
    mirrors = mirrors or (fo.app_config.plugins or {}).get(PLUGIN, {}).get("mirrors", [])
    published = [] if entry.by_hand else [entry.source]
    return [f"{mirror.rstrip('/')}/{entry.file}" for mirror in mirrors] + published


def _of_checkpoint(path: Path) -> Weights:
    """The user's file, or the safetensors beside it that were made of it."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    # OpenMMLab's file names end with the first eight digits of the file's SHA-256: -<digits>_<date>.pth
    published = re.search(r"-([0-9a-f]{8})(?:_\d{8})?\.pth$", path.name)
    sha256 = _verify(path, published.group(1) if published else "")
    twin = twin_path(path)
    made = metadata_of(twin)
    if twin != path and made.get(MADE_FROM) == sha256:
        return Weights(twin, sha256 if made.get(EXACT) == "true" else file_sha256(twin))
    return Weights(path, sha256)


def _verify(path: Path, expected: str) -> str:
    """The SHA-256 of a file, which begins as expected."""
    if not path.is_file():
        raise CheckpointError(f"The file {path} is missing; install the plugin again.")
    sha256 = file_sha256(path)
    if not sha256.startswith(expected):
        raise CheckpointError(
            f"{path} is not the file that was published: its SHA-256 is {sha256}, expected {expected}. "
            "It is damaged or was changed; fetch it again."
        )
    return sha256


def _installed(entry: ModelEntry, path: Path) -> Weights:
    """Weights in the zoo directory, which must be what they were at first use."""
    sha256, record = file_sha256(path), _read_record(path)
    if not record:
        made = metadata_of(path)
        if not made.get(MADE_FROM, "").startswith(entry.sha256):
            raise CheckpointError(
                f"{path} was not made of the file that was published for '{entry.name}'. Move it elsewhere and give "
                "its path as 'checkpoint', or delete it, and the published weights will be fetched."
            )
        record = _write_record(path, made.get(MADE_FROM, sha256), made.get(EXACT) == "true")
    if record["sha256"] != sha256:
        raise CheckpointError(
            f"{path} has changed since its first use: its SHA-256 is {sha256}, and was {record['sha256']}. Delete it, "
            "and it will be made anew."
        )
    return Weights(path, record[MADE_FROM] if record[EXACT] else sha256)


def install(entry: ModelEntry, original: Path, installed: Path | None, half: bool = False) -> None:
    """Check a published file, and make of it what is kept (None: only check it).

    Raises:
        CheckpointError: if it is not the published file, or another one than at first use
    """
    sha256 = _verify(original, entry.sha256)
    record = _read_record(installed_path(entry))
    if record and record[MADE_FROM] != sha256:
        raise CheckpointError(
            f"The file for '{entry.name}' is another one than at first use: its SHA-256 is {sha256}, and was "
            f"{record[MADE_FROM]}. If that is right, delete {_record_path(installed_path(entry))}."
        )
    file = read(original)
    config = config_for(file, len(entry.joint_set), entry.network, entry.name)
    if installed:
        exact = write(installed, file, half, {"model": entry.name, "network": json.dumps(config.to_dict())})
        _write_record(installed, sha256, exact)


def _record_path(installed: Path) -> Path:
    return installed.with_name(f"{installed.name}.json")


def _read_record(installed: Path) -> dict | None:
    try:
        return json.loads(_record_path(installed).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{_record_path(installed)} cannot be read; delete it and {installed}.") from error


def _write_record(installed: Path, made_from: str, exact: bool) -> dict:
    record = {"sha256": file_sha256(installed), MADE_FROM: made_from, EXACT: exact}
    path = _record_path(installed)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(record, indent=2), encoding="utf-8")
    partial.replace(path)
    return record


def copy(entry: ModelEntry, path: str | Path) -> None:
    """Put a model's weights where FiftyOne's model zoo looks for them; fetches them first.

    Raises:
        CheckpointError: if they cannot be had
    """
    weights, target = find(entry) or fetch(entry), Path(path)
    if weights.path.resolve() != target.resolve():
        partial = target.with_name(f"{target.name}.partial")
        shutil.copyfile(weights.path, partial)
        partial.replace(target)

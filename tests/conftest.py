"""Every test run has a MongoDB, plugins folder, model zoo and dataset folder of its own, in a temporary folder.

MongoDB is started here and handed to FiftyOne as a URI: left alone, FiftyOne would attach to whichever one is already
running for this user, with the user's own datasets in it. Where FIFTYONE_DATABASE_URI is set, that server is used, with
a database of its own that is dropped at the end; so do the processes of `pytest -n` with that of the first one.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import pytest

from benchmarks.database import start_mongod

if TYPE_CHECKING:
    import fiftyone as fo

REPOSITORY = Path(__file__).resolve().parent.parent

_home = pytest.StashKey[Path]()
_mongod = pytest.StashKey[subprocess.Popen]()


def pytest_configure(config: pytest.Config) -> None:
    """Point FiftyOne at the run's own folders and database, before any test imports it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the database is stopped also then
    home = Path(tempfile.mkdtemp(prefix="pose-heatmaps-tests-"))
    config.stash[_home] = home
    for folder, link in [("plugins", "pose_heatmaps"), ("model_zoo", "pose-heatmaps")]:
        (home / folder).mkdir()
        (home / folder / link).symlink_to(REPOSITORY, target_is_directory=True)
    os.environ.update(
        FIFTYONE_DATABASE_NAME=f"pose-heatmaps-tests-{uuid.uuid4().hex[:12]}",
        FIFTYONE_PLUGINS_DIR=str(home / "plugins"),
        FIFTYONE_MODEL_ZOO_DIR=str(home / "model_zoo"),
        FIFTYONE_DEFAULT_DATASET_DIR=str(home / "datasets"),
        FIFTYONE_DATASET_ZOO_DIR=str(home / "dataset_zoo"),
        FIFTYONE_CONFIG_PATH=str(home / "config.json"),
        FIFTYONE_APP_CONFIG_PATH=str(home / "app_config.json"),
        FIFTYONE_DO_NOT_TRACK="1",
        FIFTYONE_ALLOW_LEGACY_ORCHESTRATORS="true",
    )
    if not os.environ.get("FIFTYONE_DATABASE_URI"):
        try:
            config.stash[_mongod], port = start_mongod(home / "database")
        except (FileNotFoundError, RuntimeError) as error:
            raise pytest.UsageError(str(error)) from error
        os.environ["FIFTYONE_DATABASE_URI"] = f"mongodb://127.0.0.1:{port}"
        os.environ["FIFTYONE_DATABASE_VALIDATION"] = "false"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the run's MongoDB, or drop its database where the server is somebody else's, and remove its folder."""
    mongod = config.stash.get(_mongod, None)
    if mongod is not None:
        mongod.terminate()
        mongod.wait(timeout=30)
    else:
        import pymongo

        pymongo.MongoClient(os.environ["FIFTYONE_DATABASE_URI"]).drop_database(os.environ["FIFTYONE_DATABASE_NAME"])
    shutil.rmtree(config.stash[_home], ignore_errors=True)


@pytest.fixture
def dataset() -> Iterator[Callable[..., "fo.Dataset"]]:
    """Makes datasets: `dataset(folder_or_image_paths)`. Each has a unique name and is deleted after the test."""
    import fiftyone as fo

    names = []

    def make(images: Path | Iterable[Path | str] = ()) -> fo.Dataset:
        paths = sorted(path for path in images.rglob("*") if path.is_file()) if isinstance(images, Path) else images
        # persistent, because other processes of a test (workers, the App) delete the others when they end
        made = fo.Dataset(f"test-{uuid.uuid4().hex[:12]}", persistent=True)
        names.append(made.name)
        made.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
        return made

    yield make
    for name in names:
        if fo.dataset_exists(name):
            fo.delete_dataset(name)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real photos, two of them with a person (astronaut, camera), as JPEG and PNG. Copy before changing any."""
    import skimage.data

    folder = tmp_path_factory.mktemp("photos")
    for name, image in {
        "astronaut.jpg": skimage.data.astronaut(),
        "camera.png": skimage.data.camera(),
        "chelsea.jpg": skimage.data.chelsea(),
        "coffee.png": skimage.data.coffee(),
        "motorcycle.jpg": skimage.data.stereo_motorcycle()[0],
        "rocket.jpg": skimage.data.rocket(),
    }.items():
        assert cv2.imwrite(str(folder / name), image if image.ndim == 2 else image[..., ::-1])
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of photos with labelled joints (val/, person_free/) that DATA_DIR names."""
    if not os.environ.get("DATA_DIR"):
        pytest.skip("DATA_DIR is not set: it names the folder with val/ and person_free/ that this test measures on")
    folder = Path(os.environ["DATA_DIR"])
    if not folder.is_dir():
        pytest.fail(f"DATA_DIR={folder} does not exist")
    return folder

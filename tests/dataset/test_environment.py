"""The test run is shut off from the user's own FiftyOne."""

import os
from pathlib import Path

import fiftyone as fo


def test_datasets_live_in_a_database_of_the_test_run(dataset, photos):
    made = dataset(photos)

    assert len(made) == 6
    assert fo.list_datasets() == [made.name]
    assert fo.config.database_name == os.environ["FIFTYONE_DATABASE_NAME"]
    assert Path(fo.config.plugins_dir).parent == Path(fo.config.model_zoo_dir).parent

"""The process that test_kill.py kills: `python run_pipeline.py DATASET MAPS_DIR`."""

import sys

import fiftyone as fo

from inference import pipeline

if __name__ == "__main__":
    dataset_name, maps_dir = sys.argv[1:]
    pipeline.run(fo.load_dataset(dataset_name).view(), pipeline.Settings(label_field="pose", maps_dir=maps_dir))

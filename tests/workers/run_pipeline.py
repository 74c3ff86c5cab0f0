"""The process that test_kill.py kills: `python run_pipeline.py DATASET MAPS_DIR INPUT_SIZE`."""

import sys

import fiftyone as fo

from inference import pipeline

if __name__ == "__main__":
    dataset_name, maps_dir, input_size = sys.argv[1:]
    settings = pipeline.Settings(label_field="pose", maps_dir=maps_dir, input_size=int(input_size))
    pipeline.run(fo.load_dataset(dataset_name).view(), settings)

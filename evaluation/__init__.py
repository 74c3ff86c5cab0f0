"""What the maps of a run are worth: against ground truth, against another run, and as poses to search by."""

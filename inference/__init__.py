"""HigherHRNet inference: network, geometry, aggregation, grouping, maps, and the run over a dataset."""

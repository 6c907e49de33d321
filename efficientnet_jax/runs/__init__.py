"""A run and its place: the workdir, the record, checkpoints, hosts and devices."""

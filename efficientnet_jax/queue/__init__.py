"""A queue of evaluations that any number of processes share."""

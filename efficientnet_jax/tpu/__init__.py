"""Ahead-of-time compilation for TPU slices: cost, memory and plan."""

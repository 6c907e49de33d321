"""Augmentation: policies as data, drawn on the host and applied there or on the device."""

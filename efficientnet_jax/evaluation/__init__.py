"""Scoring and predicting with trained weights. Knows nothing of training."""

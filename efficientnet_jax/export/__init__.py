"""Files that other programs run: StableHLO, SavedModel, TFLite."""

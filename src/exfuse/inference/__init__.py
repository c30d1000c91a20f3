"""Engines, tiling and test-time augmentation."""

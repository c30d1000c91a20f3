"""Samples, data sets, augmentation and the training loader."""

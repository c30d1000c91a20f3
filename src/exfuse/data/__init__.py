"""Samples, data sets, augmentation and the training stream; knows no model."""

"""Turning public data sets, as they are downloaded, into one folder that can be trained on."""

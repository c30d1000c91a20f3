"""Trained models as files for other runtimes, each compared with the network before it is called finished."""

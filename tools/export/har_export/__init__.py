"""Datasets, training, quantisation and evaluation: recordings in, model bundle out."""

__version__ = "0.2.0"

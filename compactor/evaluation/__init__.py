"""Labelled data, and how good the answers of a model to it are: for ``bench``, ``prune`` and ``predict``."""

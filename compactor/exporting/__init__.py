"""From a checkpoint to a verified artefact: ``export.py`` is the road."""

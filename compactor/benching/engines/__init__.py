"""The engines that run a variant; see ``open_engine``."""

"""Folders of sentence-transformers: what their modules make of a model's outputs, with numpy alone.

``modules.json`` names a chain: a transformer, which is the graph, and what comes behind it (pooling, projections,
norms, masks). Here each module is a small function; one that is not built is refused by name, and so is a setting of
one. The export asks the same code about the source folder before it does anything that takes long.
"""

from __future__ import annotations

from .chain import Chain, read_chain
from .features import Features
from .prompts import Prompts
from .roles import Roles
from .settings import SentenceSettings

__all__ = ["Chain", "Features", "Prompts", "Roles", "SentenceSettings", "read_chain"]

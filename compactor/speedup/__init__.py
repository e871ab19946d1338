"""``compactor prune --speedup``: structure removed by second order until a model is as fast as was promised."""

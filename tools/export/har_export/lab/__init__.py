"""Experiments: the published tables reproduced beside ours. Nothing here is needed to build a bundle."""

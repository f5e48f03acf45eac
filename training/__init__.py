"""Supernet training and evolutionary search: images in, one delta per task out."""

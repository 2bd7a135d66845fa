"""Embedding, towers, and the network that joins them."""

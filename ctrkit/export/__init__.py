"""From a trained network to a bundle that serves."""

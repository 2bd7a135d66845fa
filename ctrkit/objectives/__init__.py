"""Learning methods: which networks train together, by which losses, and which one ships."""

"""The online side of ctrkit: score a bundle without torch."""

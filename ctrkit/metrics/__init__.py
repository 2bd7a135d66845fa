"""How good a CTR model is: numpy in, numbers out, no torch."""

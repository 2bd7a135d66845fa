"""From a recipe's values to modules and optimizers, passed as plain arguments: the only room that knows both."""

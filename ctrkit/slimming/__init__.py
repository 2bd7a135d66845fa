"""The width of a slimmable tower: AutoSlim, budgets, what towers cost, bundles of one width or several."""

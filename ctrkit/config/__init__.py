"""Recipes: what each section may say, what it means, what is said of a wrong one."""

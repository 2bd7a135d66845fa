"""Judging scores that lie in files, whichever model they come from."""

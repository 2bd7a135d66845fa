"""`ctrkit bench`: how long a request takes, alone and under load."""

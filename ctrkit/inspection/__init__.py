"""What `ctrkit init` sees in a log, and the recipe it writes."""

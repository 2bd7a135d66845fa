"""What is measured, and against whom; each script prints a table and, last, one line of JSON."""

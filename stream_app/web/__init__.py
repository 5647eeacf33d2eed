"""HTTP: what a worker answers, to whom, and in which words."""

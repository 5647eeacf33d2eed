"""What sinks say: the form in which they say it, and the checks that ask those which cannot report."""

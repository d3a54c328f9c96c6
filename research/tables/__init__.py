"""Tables of runs, ours and those of others: read, named, filtered; which of their rows compare."""

"""What was done, what it cost, and how good it was: from stored facts to figures with their intervals. Pure."""

"""What rules are written in: the ops, expressions of them, and the program that a rule becomes."""

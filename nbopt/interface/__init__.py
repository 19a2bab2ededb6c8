"""What an optimizer and a backend know of each other."""

"""From a program to the text of a kernel, and from the text to a module."""

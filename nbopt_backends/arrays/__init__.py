"""Arrays of the host and of devices, and what is checked about them before a step."""

"""What one step needs besides its numbers, found again at the next step."""

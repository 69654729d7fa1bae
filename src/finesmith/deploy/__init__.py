"""What ships or lists finished runs."""

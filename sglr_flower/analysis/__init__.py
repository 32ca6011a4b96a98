"""What the paper measures besides accuracy."""

"""What a run costs or would cost."""

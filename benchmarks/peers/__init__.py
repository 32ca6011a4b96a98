"""What runs are compared with, as its own users would write it; files to be copied to where they run."""

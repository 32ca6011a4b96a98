"""What the server could learn of the clients' images: an inversion attack on a run's smashed data, and its measures."""

"""The data and who holds them: sources (`datasets`), their split over the clients (`partition`), `augment`."""

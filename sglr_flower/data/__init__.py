"""The images and who holds them: data sets (`datasets`), their split over the clients (`partition`), `augment`."""

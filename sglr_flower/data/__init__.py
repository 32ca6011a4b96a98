"""The images and who holds them: data sets (`datasets`) and their split over the clients (`partition`)."""

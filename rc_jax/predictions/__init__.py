"""Label images for people and for test servers: the images to label, the folder of results, submissions."""

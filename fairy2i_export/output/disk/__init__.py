"""What exports ask of the file system: files that are nobody else's, names that change in one step, contents on the disk."""

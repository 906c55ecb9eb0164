"""What both front ends write with: the folder and its journal, data file, metadata, configuration, progress, sizes."""

"""Training data on disk: text files and token files are found, checked and described.  Nothing here imports torch."""

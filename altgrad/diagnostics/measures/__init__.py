"""One quantity, one small class, one file; each measured around the real optimizer step."""

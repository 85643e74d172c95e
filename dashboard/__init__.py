"""The dashboard shows running and finished sweeps.  It reads nothing but results folders; no torch, no ray."""

"""The dashboard: shows running and finished sweeps.  Reads the results schema and nothing else; no torch, no ray."""

"""How long trials take on this machine: a few real steps of each kind, measured once and kept."""

"""How a config field is declared, and how a wrong one is refused."""

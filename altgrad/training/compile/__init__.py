"""How a step is run: eagerly, as one compiled graph, or block by block, whichever pays."""

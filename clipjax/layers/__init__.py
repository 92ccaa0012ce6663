"""Building blocks of the towers: pure maths, no mesh, no config."""

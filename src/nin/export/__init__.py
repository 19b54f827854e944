"""From a trained network to files that prove themselves: one module for each format."""

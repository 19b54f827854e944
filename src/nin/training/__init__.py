"""Training of the built-in model, and the evaluation of any."""

"""From a model folder to modules: the network with its weights, and the classifier around it."""

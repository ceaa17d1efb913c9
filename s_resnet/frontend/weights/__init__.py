"""Files of weights: which network has the names and shapes of a state dict."""

"""A module of PyTorch becomes the nodes of a Graph: its forward is run once, and every call of torch is looked at."""

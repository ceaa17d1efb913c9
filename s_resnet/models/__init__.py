"""ResNets as plain ``torch.nn.Module``s."""

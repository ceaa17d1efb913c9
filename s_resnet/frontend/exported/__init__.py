"""Programs of ``torch.export``, read as data."""

"""Export: a spiking network for other engines and machines."""

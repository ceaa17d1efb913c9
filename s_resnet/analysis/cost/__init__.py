"""What a run costs: operations, where their results go, energy."""

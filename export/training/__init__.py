"""How the shipped `tiny` weights are made."""

"""What models do: from the bytes a person has to a small meaningful result."""

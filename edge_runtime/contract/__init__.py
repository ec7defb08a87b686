"""What travels between the parts: messages, topics, signals, codec, packages, HTTP bodies, limits."""

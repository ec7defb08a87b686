"""What travels: messages, topics, signals, codec, packages, HTTP bodies; and the limits."""

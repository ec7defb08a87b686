"""One module a command: it reads settings, composes the parts and prints. No decisions."""

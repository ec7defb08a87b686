"""Model packages on the car: the verified store, and how packages are made."""

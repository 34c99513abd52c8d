"""What is stored between positions of two inputs, and what may be done to it."""

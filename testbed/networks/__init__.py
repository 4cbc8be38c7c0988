"""Networks by name, called as network(x, c_noise, condition)."""

"""The bundled networks, called as network(x, c_noise, condition)."""

"""Study files that several tests are made of."""

TINY = """
[study]
name = "tiny"
title = "A tiny study"

[base]
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 4, draws = 32, samples = 16, steps = 4, metrics = ["energy"] }

[arms]
published = {}
equal = { weighting = "edm", density = "lognormal", c_in = "shared", c_noise = "shared" }

[grid]
parameterization = ["v", "edm"]

[[cases]]
name = "mixture"
dataset = { name = "mixture", dim = 2 }
seeds = 2

[[cases]]
name = "digits"
dataset = "digits"
seeds = 1

[report]
baseline = "edm"
"""

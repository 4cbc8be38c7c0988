"""What is measured: sample distances, and the statistics of a comparison over seeds."""

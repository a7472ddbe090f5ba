"""What scripts/bench and scripts/ab are made of: a running target, samples with their noise, plots."""

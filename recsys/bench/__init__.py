"""What it costs and how well it ranks, in figures: one module a benchmark, each beside what a team would use instead."""

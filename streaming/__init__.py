"""Events, time and the log: what happened, when, and in which order. Knows nothing of tensors, models or serving."""

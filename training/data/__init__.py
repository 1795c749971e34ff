"""Training data: batches as pure functions of the step."""

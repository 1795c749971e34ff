"""Train the models: recipes, data, loop, checkpoints."""

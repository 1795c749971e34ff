"""What can be trained: each stage has a config, a loss and an export."""

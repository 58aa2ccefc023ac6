"""Self-supervised training of pose estimators: synthesis of pairs, networks, losses, trainer, export."""

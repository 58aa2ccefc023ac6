"""Self-supervised training: synthesis of views, networks, losses, trainer, export."""

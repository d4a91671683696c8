"""Parameter-efficient fine-tuning: small trainable modules in a frozen backbone."""

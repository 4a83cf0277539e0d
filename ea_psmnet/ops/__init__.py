"""Parameter-free tensor functions; each fast form stands beside its plain reference."""

"""Parameter-free tensor functions; a fast `f` stands beside its plain `f_reference`."""

"""Public entry points."""
moments=target_attention=None

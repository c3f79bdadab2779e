"""MagicDNS, tailscaled's local API and socket options."""

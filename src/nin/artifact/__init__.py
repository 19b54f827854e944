"""What an exported file carries to prove itself, and the manifest that vouches for it."""

"""Mathematics shared by models, strategies and clients."""

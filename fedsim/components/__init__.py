"""Look components up by name, check their options, build them."""

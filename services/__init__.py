"""The services of Roost, the kit they share, and the registry that lists them."""

"""What trains the network with Lightning."""

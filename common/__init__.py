"""What training, testing and the demo share: types, networks, geometry, files."""

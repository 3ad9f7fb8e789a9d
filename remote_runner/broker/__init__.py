"""The process that runs the instances of all launchers of a user: their connections, builds and pushes are shared."""

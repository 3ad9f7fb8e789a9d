"""A second machine for `fab demo` and the tests."""

"""`fab runs*` and `fab rerun`: runs whose records are here."""

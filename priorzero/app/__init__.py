"""The only reader of the configuration: builds the objects, links them and runs them."""

"""HTTP exchanges with the service: authorised, repeated if that is safe, received within bounds."""

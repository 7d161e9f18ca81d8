"""HTTP exchanges with the service: authorised, repeated where that is safe, received within bounds."""

"""Encoders: their families, our forward pass, attention, the LSTM, and where weights are found."""

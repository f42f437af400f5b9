"""Sound files, sample rates and the STFT. Arrays of sound are float32 `[channels, T]` at full scale 1.0."""

"""OpenAI CLIP in Flax: its text tower and its vision tower."""

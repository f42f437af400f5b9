"""LAION-CLAP in Flax: its text tower (RoBERTa) and its audio tower (HTSAT)."""

"""From a recording and queries to the sounds that they ask for."""

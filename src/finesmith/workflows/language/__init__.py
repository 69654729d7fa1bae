"""The story of tasks that answer for every token: the same chapters as the main one, with rows that are sentences."""

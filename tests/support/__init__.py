"""What several test files need: a module for each idea, named by it."""
